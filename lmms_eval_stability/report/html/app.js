// The page: nodes are only made by `el`, which turns every text into a text node. Logged texts are never markup.
(() => {
  if (typeof document === "undefined") return;
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const ROW = 68;
  const WORDS = { "-1": ["negative", "right → wrong"], 1: ["positive", "wrong → right"], 0: ["kept", "verdict kept"] };
  const SORTS = { log: "task and document", closest: "margin, closest call first", clearest: "margin, clearest first", shared: "how many runs share it", run: "run" };

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
    return node;
  }

  theme();
  sortable(document.querySelector("#summary table"));
  document.querySelectorAll("button.widen").forEach(widen);
  const book = Logic.open(JSON.parse($("data").textContent));
  const { data } = book;
  const { docs, rows } = data;
  const text = (place) => (place >= 0 ? data.texts[place] : "");
  const state = { task: null, run: null, direction: null, category: null, query: "", sort: "log" };
  let shown = [];
  let chosen = 0; // place in `shown`
  let pending = false;

  if (!book.size) {
    $("status").textContent = "No answer changed.";
    root.dataset.ready = "true";
    return;
  }
  for (const id of ["filters", "browser", "keys"]) $(id).hidden = false;
  fillFilters();
  listen();
  if (!openLink()) refresh();
  root.dataset.ready = "true";

  function theme() {
    const button = $("theme");
    const modes = ["auto", "light", "dark"];
    let mode = "auto";
    try { mode = localStorage.getItem("lmms-eval-stability-theme") || "auto"; } catch { /* a browser may forbid it */ }
    const apply = () => {
      if (!modes.includes(mode)) mode = "auto";
      if (mode === "auto") delete root.dataset.theme;
      else root.dataset.theme = mode;
      button.textContent = "Theme: " + mode;
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      mode = modes[(modes.indexOf(mode) + 1) % modes.length];
      try { localStorage.setItem("lmms-eval-stability-theme", mode); } catch { /* then only until the page is closed */ }
      apply();
    });
    apply();
  }

  function widen(button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const wide = button.closest("figure").classList.toggle("wide");
      button.setAttribute("aria-pressed", wide);
    });
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        const number = head.classList.contains("number");
        const value = (row) => {
          const cell = row.cells[column];
          if (!number) return cell.textContent;
          return cell.dataset.value === "" ? null : Number(cell.dataset.value);
        };
        const body = table.tBodies[0];
        const sorted = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === null || y === null) return (x === null) - (y === null);
          return (up ? 1 : -1) * (number ? x - y : x.localeCompare(y));
        });
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...sorted);
      });
    });
  }

  function fillFilters() {
    const counts = { task: new Map(), run: new Map(), direction: new Map(), category: new Map() };
    const add = (map, value) => map.set(value, (map.get(value) || 0) + 1);
    for (let i = 0; i < book.size; i++) {
      const doc = rows.doc[i];
      add(counts.task, docs.task[doc]);
      add(counts.run, rows.run[i]);
      add(counts.direction, WORDS[rows.flip[i]][0]);
      for (const category of docs.categories[doc]) add(counts.category, category);
    }
    const option = (value, words, count) => el("option", { value }, count === undefined ? words : `${words} (${count.toLocaleString("en")})`);
    const fill = (id, all, options) => $(id).append(el("option", { value: "" }, all), ...options);
    fill("task", "all tasks", data.tasks.map((name, i) => option(i, name, counts.task.get(i) || 0)));
    fill("run", "all runs", data.names.map((name, i) => option(i, name, counts.run.get(i) || 0)));
    fill("direction", "all directions", Object.keys(Logic.DIRECTIONS).map((name) =>
      option(name, WORDS[Logic.DIRECTIONS[name]][1], counts.direction.get(name) || 0)));
    const groups = new Map();
    data.categories.forEach(([dimension, name], i) => {
      if (!groups.has(dimension)) groups.set(dimension, el("optgroup", { label: dimension }));
      groups.get(dimension).append(option(i, name, counts.category.get(i) || 0));
    });
    fill("category", data.categories.length ? "all categories" : "none in these logs", [...groups.values()]);
    $("category").disabled = !data.categories.length;
    const margins = docs.margin.some((margin) => margin !== null);
    $("sort").append(...Logic.SORTS.filter((name) => margins || !name.startsWith("cl")).map((name) => option(name, SORTS[name])));
  }

  function listen() {
    for (const id of ["task", "run", "category"]) {
      $(id).addEventListener("change", () => { state[id] = $(id).value === "" ? null : Number($(id).value); refresh(); });
    }
    $("direction").addEventListener("change", () => { state.direction = $("direction").value || null; refresh(); });
    $("sort").addEventListener("change", () => { state.sort = $("sort").value; refresh(-1); });
    $("search").addEventListener("input", () => { state.query = $("search").value; refresh(); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", (event) => { event.preventDefault(); clear(); refresh(); });
    $("list").addEventListener("scroll", () => {
      if (pending) return;
      pending = true;
      requestAnimationFrame(() => { pending = false; draw(); });
    }, { passive: true });
    $("list").addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) choose(Number(row.dataset.place));
    });
    new ResizeObserver(() => draw()).observe($("list"));
    addEventListener("hashchange", openLink);
    document.addEventListener("keydown", onKey);
    document.querySelectorAll("button.show").forEach((button) => button.addEventListener("click", () => {
      clear();
      set("run", data.runs.indexOf(button.dataset.run));
      if (button.dataset.task !== undefined) set("task", data.tasks.indexOf(button.dataset.task));
      refresh();
      $("answers").scrollIntoView();
      $("list").focus({ preventScroll: true });
    }));
  }

  function set(id, place) {
    state[id] = place;
    $(id).value = String(place);
  }

  function clear() {
    Object.assign(state, { task: null, run: null, direction: null, category: null, query: "" });
    for (const id of ["task", "run", "direction", "category", "search"]) $(id).value = "";
  }

  // Select anew. The row `current` stays chosen if it is still there, else the first one is.
  function refresh(current = shown[chosen], quietly = true) {
    shown = Logic.select(book, state);
    $("rows").style.height = shown.length * ROW + "px";
    const all = shown.length === book.size ? "" : ` of ${book.size.toLocaleString("en")}`;
    $("status").textContent = shown.length ? `${shown.length.toLocaleString("en")}${all} answers` : `No answer fits${all ? ` (0${all})` : ""}.`;
    const place = current === undefined ? -1 : shown.indexOf(current);
    if (place < 0) $("list").scrollTop = 0;
    choose(Math.max(0, place), quietly);
  }

  function choose(place, quietly) {
    chosen = Math.max(0, Math.min(place, shown.length - 1));
    const top = chosen * ROW;
    const list = $("list");
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    draw();
    detail();
    if (!quietly && shown.length) history.replaceState(null, "", Logic.link(book, shown[chosen]));
  }

  function marked(parent, words, limit) {
    const cut = limit && words.length > limit ? words.slice(0, limit) + "…" : words;
    for (const [piece, hit] of Logic.pieces(cut, state.query)) parent.append(hit ? el("mark", {}, piece) : piece);
    return parent;
  }

  function badge(flip) {
    return el("span", { class: "badge " + WORDS[flip][0] }, WORDS[flip][1]);
  }

  function picture(doc, label) {
    return docs.image[doc] < 0 ? null : el("img", { src: data.images[docs.image[doc]], alt: label, decoding: "async" });
  }

  function margin(doc) {
    return docs.margin[doc] === null ? null : docs.margin[doc].toFixed(2);
  }

  function draw() {
    const list = $("list");
    const [first, last] = Logic.window(list.scrollTop, list.clientHeight, ROW, shown.length, 8);
    const nodes = [];
    for (let place = first; place < last; place++) nodes.push(line(place));
    // the chosen row is there even out of view: the list names it as its active one
    if (shown.length && (chosen < first || chosen >= last)) nodes.push(line(chosen));
    $("rows").replaceChildren(...nodes);
    if (shown.length) list.setAttribute("aria-activedescendant", "row-" + chosen);
    else list.removeAttribute("aria-activedescendant");
  }

  function line(place) {
    const i = shown[place];
    const doc = rows.doc[i];
    const answer = (where) => marked(el("bdi", { class: "answer" }), text(where) || "(empty)", 160);
    const close = margin(doc);
    const node = el("div", {
      class: "row", id: "row-" + place, role: "option", "data-place": place,
      "aria-selected": place === chosen, "aria-setsize": shown.length, "aria-posinset": place + 1,
    });
    const image = picture(doc, "");
    if (image) node.append(image);
    node.append(
      el("div", { class: "words" },
        marked(el("div", { class: "question", dir: "auto" }), text(docs.question[doc]), 240),
        el("div", { class: "change" }, answer(docs.answer[doc]), " → ", answer(rows.answer[i]))),
      el("div", { class: "side" }, badge(rows.flip[i]),
        el("div", { title: data.runs[rows.run[i]] }, data.names[rows.run[i]]),
        el("div", {}, `${data.tasks[docs.task[doc]]} ${docs.id[doc]}` + (close === null ? "" : ` · margin ${close}`))));
    node.style.transform = `translateY(${place * ROW}px)`;
    return node;
  }

  function detail() {
    const panel = $("detail");
    if (!shown.length) {
      panel.replaceChildren(el("p", {}, "No answer fits the filters."));
      return;
    }
    const i = shown[chosen];
    const doc = rows.doc[i];
    const name = `${data.tasks[docs.task[doc]]} ${docs.id[doc]}`;
    const step = (words, by) => {
      const button = el("button", { type: "button", "aria-label": words }, by < 0 ? "↑" : "↓");
      button.addEventListener("click", () => choose(chosen + by));
      return button;
    };
    const image = picture(doc, "image of the question");
    panel.setAttribute("aria-label", "Sample " + name);
    panel.replaceChildren(
      el("div", { class: "top" }, el("strong", {}, name), badge(rows.flip[i]),
        el("a", { href: Logic.link(book, i), class: "link" }, "link"),
        el("div", { class: "place" }, step("previous answer", -1), step("next answer", 1))),
      ...(image ? [image] : []),
      marked(el("div", { class: "question long", dir: "auto" }), text(docs.question[doc])),
      el("div", { class: "pair" },
        given("baseline", docs.answer[doc], docs.prediction[doc], docs.score[doc], rows.flip[i] === -1 ? true : rows.flip[i] === 1 ? false : null),
        given(data.runs[rows.run[i]], rows.answer[i], rows.prediction[i], rows.score[i], rows.flip[i] === 1 ? true : rows.flip[i] === -1 ? false : null)),
      facts(i, doc),
      ...others(i, doc));
    panel.scrollTop = 0;
  }

  function given(who, answer, prediction, score, right) {
    const node = el("section", { class: "given" + (right === null ? "" : right ? " right" : " wrong") },
      el("h4", {}, who + (right === null ? "" : right ? " · right" : " · wrong")),
      marked(el("div", { class: "long", dir: "auto" }), text(answer) || "(empty)"));
    if (text(prediction) !== text(answer)) {
      node.append(el("h4", {}, "compared as"), marked(el("div", { class: "long compared", dir: "auto" }), text(prediction) || "(empty)"));
    }
    node.append(el("h4", {}, "score " + (score === null ? "–" : score)));
    return node;
  }

  function facts(i, doc) {
    const list = el("dl", {}, el("dt", {}, "target"), marked(el("dd", { class: "long target", dir: "auto" }), text(docs.target[doc])));
    const add = (name, value) => list.append(el("dt", {}, name), el("dd", {}, value));
    add("margin", margin(doc) === null ? "not logged" : `${margin(doc)} nats`);
    for (const category of docs.categories[doc]) add(...data.categories[category]);
    return list;
  }

  function others(i, doc) {
    const rest = book.inDoc[doc].filter((other) => other !== i);
    if (!rest.length) return [];
    const items = rest.map((other) => el("li", {},
      badge(rows.flip[other]), " ", el("a", { href: Logic.link(book, other) }, data.names[rows.run[other]]), ": ",
      el("bdi", { class: "answer" }, (text(rows.answer[other]) || "(empty)").slice(0, 300))));
    return [el("h4", {}, `also changed by ${rest.length} other run${rest.length > 1 ? "s" : ""}`), el("ul", { class: "others" }, ...items)];
  }

  // Show the sample that the address names. Filters that hide it are cleared.
  function openLink() {
    const row = Logic.follow(book, location.hash);
    if (row === null) return false;
    if (row < 0) {
      if (!shown.length) refresh();
      $("status").textContent = "The linked answer is not in this page: it did not change, or is among those left out.";
    } else {
      if (!Logic.select(book, state).includes(row)) clear();
      refresh(row, false);
    }
    $("answers").scrollIntoView();
    $("list").focus({ preventScroll: true });
    return true;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = document.activeElement;
    const typing = at instanceof HTMLInputElement;
    if (event.key === "Escape" && (typing || $("detail").contains(at))) {
      if (typing && at.value) {
        at.value = state.query = "";
        refresh();
      } else $("list").focus();
      event.preventDefault();
      return;
    }
    if (typing) {
      if (event.key === "ArrowDown" || event.key === "Enter") { $("list").focus(); event.preventDefault(); }
      return;
    }
    if (at instanceof HTMLSelectElement) return;
    if (event.key === "/") {
      $("search").focus();
      $("search").select();
      event.preventDefault();
      return;
    }
    const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
    const anywhere = { j: 1, k: -1 };
    const inList = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const by = anywhere[event.key] || (at === $("list") && inList[event.key]);
    if (by) {
      choose(by === Infinity ? shown.length - 1 : by === -Infinity ? 0 : chosen + by);
      event.preventDefault();
    } else if (event.key === "Enter" && at === $("list")) {
      $("detail").focus();
      event.preventDefault();
    }
  }
})();
