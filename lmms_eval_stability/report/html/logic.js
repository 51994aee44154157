"use strict";
// What to show, without the document: decoding, filtering, sorting and links. Nothing here touches markup.
const Logic = (() => {
  const DIRECTIONS = { negative: -1, positive: 1, kept: 0 };
  const SORTS = ["log", "closest", "clearest", "shared", "run"];

  function open(data) {
    const { docs, rows } = data;
    const size = rows.doc.length;
    const lower = data.texts.map((text) => text.toLowerCase());
    const ids = docs.id.map((id) => id.toLowerCase());
    // how many runs change each document's verdict in the same direction
    const shared = new Map();
    const inDoc = docs.id.map(() => []);
    for (let i = 0; i < size; i++) {
      const key = rows.doc[i] + "/" + rows.flip[i];
      shared.set(key, (shared.get(key) || 0) + 1);
      inDoc[rows.doc[i]].push(i);
    }
    const place = new Map();
    for (let i = 0; i < size; i++) {
      place.set(key(docs.task[rows.doc[i]], rows.run[i], docs.id[rows.doc[i]]), i);
    }
    return { data, size, lower, ids, place, inDoc, orders: {}, shared: (i) => shared.get(rows.doc[i] + "/" + rows.flip[i]) };
  }

  function key(task, run, id) {
    return task + "/" + run + "/" + id;
  }

  // Row numbers in the order of a sort, made once. Rows without a margin come last either way; ties keep the log's order.
  function order(book, sort) {
    if (book.orders[sort]) return book.orders[sort];
    const { docs, rows } = book.data;
    const found = Array.from({ length: book.size }, (_, i) => i);
    const log = (a, b) => rows.doc[a] - rows.doc[b] || rows.run[a] - rows.run[b] || a - b;
    const margin = (sign) => (a, b) => {
      const [x, y] = [docs.margin[rows.doc[a]], docs.margin[rows.doc[b]]];
      if (x === null || y === null) return (x === null) - (y === null) || log(a, b);
      return sign * (x - y) || log(a, b);
    };
    const compare = {
      log,
      closest: margin(1),
      clearest: margin(-1),
      shared: (a, b) => book.shared(b) - book.shared(a) || log(a, b),
      run: (a, b) => rows.run[a] - rows.run[b] || log(a, b),
    }[sort];
    return (book.orders[sort] = found.sort(compare));
  }

  // The words of a query; what stands between double quotes is one.
  function words(query) {
    return Array.from(query.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g), (found) => found[1] || found[0]);
  }

  // A row matches a word that is part of its question, target, id, or any of its answers; it must match every word.
  function matcher(book, query) {
    const { docs, rows } = book.data;
    const tests = words(query).map((word) => {
      const hit = new Uint8Array(book.lower.length);
      book.lower.forEach((text, i) => { hit[i] = text.includes(word) ? 1 : 0; });
      const docHit = new Uint8Array(docs.id.length);
      for (let d = 0; d < docHit.length; d++) {
        const of = (column) => docs[column][d] >= 0 && hit[docs[column][d]];
        docHit[d] = of("question") || of("target") || of("answer") || of("prediction") || book.ids[d] === word ? 1 : 0;
      }
      return (i) => docHit[rows.doc[i]] || hit[rows.answer[i]] || hit[rows.prediction[i]];
    });
    return (i) => tests.every((test) => test(i));
  }

  // state: task, run, category (numbers, or null for all), direction (a name, or null), query, sort.
  function select(book, state) {
    const { docs, rows } = book.data;
    const matches = matcher(book, state.query || "");
    const flip = state.direction === null ? null : DIRECTIONS[state.direction];
    return order(book, state.sort).filter((i) => {
      const doc = rows.doc[i];
      return (
        (state.task === null || docs.task[doc] === state.task) &&
        (state.run === null || rows.run[i] === state.run) &&
        (flip === null || rows.flip[i] === flip) &&
        (state.category === null || docs.categories[doc].includes(state.category)) &&
        matches(i)
      );
    });
  }

  function link(book, i) {
    const { docs, rows } = book.data;
    const doc = rows.doc[i];
    const parts = [book.data.tasks[docs.task[doc]], book.data.runs[rows.run[i]], docs.id[doc]];
    return "#" + parts.map(encodeURIComponent).join("/");
  }

  // The row that a link names; -1 for one that is not in the page, null for what is no such link.
  function follow(book, hash) {
    const parts = hash.replace(/^#/, "").split("/");
    if (parts.length !== 3) return null;
    let names;
    try {
      names = parts.map(decodeURIComponent);
    } catch {
      return null;
    }
    const found = book.place.get(key(book.data.tasks.indexOf(names[0]), book.data.runs.indexOf(names[1]), names[2]));
    return found === undefined ? -1 : found;
  }

  // Which rows of a list are in view, with some more on either side.
  function window(top, height, row, count, more) {
    const first = Math.max(0, Math.floor(top / row) - more);
    return [first, Math.min(count, Math.ceil((top + height) / row) + more)];
  }

  // A text in pieces that match one of the words, or none: [[piece, matches], ...].
  function pieces(text, query) {
    const wanted = words(query);
    const lower = text.toLowerCase();
    // some letters have another length in lower case: places would then be wrong
    if (!wanted.length || lower.length !== text.length) return [[text, false]];
    const marked = new Uint8Array(text.length);
    for (const word of wanted) {
      for (let at = lower.indexOf(word); at >= 0; at = lower.indexOf(word, at + word.length)) {
        marked.fill(1, at, at + word.length);
      }
    }
    const found = [];
    for (let start = 0; start < text.length; ) {
      let end = start + 1;
      while (end < text.length && marked[end] === marked[start]) end++;
      found.push([text.slice(start, end), marked[start] === 1]);
      start = end;
    }
    return found;
  }

  return { DIRECTIONS, SORTS, open, order, select, link, follow, window, pieces };
})();
if (typeof module !== "undefined") module.exports = Logic;
