"""`compare --wandb` and `--push-to-hub` with the official clients: offline, not logged in, to a hub on localhost."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from lmms_eval_stability import compare
from lmms_eval_stability.errors import OptionError, PushError
from lmms_eval_stability.push import Push, without_examples
from lmms_eval_stability.push.hub import card

from .conftest import BASE, FASTV, WriteRun, sample

RUN = "llava_fastv (k=3, r=0.5)"
SECRET = "a licensed answer"


@dataclass
class Hub:
    """What a hub on this machine was asked to do."""

    url: str = ""
    private: list[bool] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    refuse: int = 0


class Answers(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.tokens.add(self.headers.get("authorization", ""))
        if self.hub.refuse:
            self._reply({"error": "You don't have the rights to create a dataset here"}, self.hub.refuse)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            # clients that know more than two visibilities ask for one by name
            self.hub.private.append(bool(asked.get("private")) or asked.get("visibility") == "private")
            self._reply({"url": f"{self.hub.url}/datasets/me/found", "id": "1", "name": "me/found"})
        elif self.path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")[1]
            self._reply({"errors": [], "warnings": []} if yaml.safe_load(front) else {"errors": ["empty"]})
        elif self.path == "/api/datasets/me/found/preupload/main":
            names = [one["path"] for one in json.loads(body)["files"]]
            self._reply({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif self.path == "/api/datasets/me/found/commit/main":
            for line in body.splitlines():
                record = json.loads(line)
                if record["key"] == "file":
                    self.hub.files[record["value"]["path"]] = base64.b64decode(record["value"]["content"])
            self._reply({"commitUrl": f"{self.hub.url}/datasets/me/found/commit/abc", "commitOid": "abc"})
        else:
            self._reply({"error": f"unexpected {self.path}"}, 404)

    def _reply(self, answer: Any, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    asked = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("For", (Answers,), {"hub": asked}))
    asked.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def runs(write_run: WriteRun) -> list[Path]:
    """Two runs, one of whose answers must not leave the house; one prompt differs, which the examples quote."""
    last = {"filtered_resps": SECRET, "input": f"another question: {SECRET}"}
    base = write_run("base", {"gqa": [*BASE, sample(5, "red", 1.0)]})
    args = "pretrained=demo,k=3,r=0.5"
    return [base, write_run("fastv", {"gqa": [*FASTV, sample(5, "red", 1.0) | last]}, model="llava_fastv", args=args)]


@pytest.fixture
def run_alone(runs: list[Path], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in a process of its own, logged in nowhere: clients read their environment when imported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HF_", "HUGGING"))}
    home = tmp_path / "home"
    home.mkdir()

    def run(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lmms_eval_stability.cli", "compare", *runs, "--accept", "input", *args]
        return subprocess.run(
            [str(part) for part in command],
            cwd=tmp_path,
            env=clean | {"HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


Alone = Callable[..., "subprocess.CompletedProcess[str]"]


def records_of(folder: Path) -> list[Any]:
    """What the client wrote for `wandb sync`."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    store, found = DataStore(), []
    store.open_for_scan(str(path))
    while (raw := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        found.append(record)
    return found


def test_wandb_offline_for_real(run_alone: Alone, tmp_path: Path) -> None:
    done = run_alone("--wandb", "team/vlm", "-o", tmp_path / "r", "--format", "json", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["comparisons"]
    assert "pushed to wandb: offline run in " in done.stderr
    assert "wandb sync" in done.stderr
    records = records_of(tmp_path)
    (run,) = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    assert (run.project, run.entity, run.job_type) == ("vlm", "team", "compare")
    assert run.display_name == f"{RUN} against llava_baseline"
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert (config["baseline"], config["runs"], config["tasks"]) == ("llava_baseline", [RUN], ["gqa"])
    assert config["accepted"] == {RUN: {"input": 1}}
    summary = {item.key: json.loads(item.value_json) for one in records for item in one.summary.update if item.key}
    for name in ("score_baseline", "score_run", "drop", "dr", "ndr", "pdr"):
        assert summary[f"{RUN}/gqa/{name}"] == row[name]
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/divergence_*.table.json")
    shown = json.loads(table.read_text())
    assert dict(zip(shown["columns"], shown["data"][0], strict=True)).items() <= row.items()
    artifacts = [one.artifact for one in records if one.WhichOneof("record_type") == "artifact"]
    (report,) = [one for one in artifacts if one.type == "report"]
    files = {one.path: Path(one.local_path) for one in report.manifest.contents}
    assert set(files) == {"summary.json", "divergence.csv", "divergence.png"}
    # the process is over: what is to be synced later must still be there
    assert json.loads(files["summary.json"].read_text())["comparisons"] == [row]
    assert all(SECRET not in path.read_text(errors="replace") for path in files.values())


def test_wandb_gets_the_page_when_told_so(run_alone: Alone, tmp_path: Path) -> None:
    done = run_alone("--wandb", "p", "-o", tmp_path / "r", "--html", "--push-pairs", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    artifacts = [one.artifact for one in records_of(tmp_path) if one.WhichOneof("record_type") == "artifact"]
    (report,) = [one for one in artifacts if one.type == "report"]
    files = {one.path: Path(one.local_path) for one in report.manifest.contents}
    assert files["report.html"].read_bytes() == (tmp_path / "r" / "report.html").read_bytes()
    assert "pairs.parquet" in files


def test_hub_and_wandb_without_a_login_end_with_both_reasons_and_the_report(run_alone: Alone, tmp_path: Path) -> None:
    done = run_alone("--wandb", "p", "--push-to-hub", "me/found", "-o", tmp_path / "r", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: --wandb p: No API key configured" in done.stderr
    assert "`wandb login`" in done.stderr
    assert "--push-to-hub me/found" in done.stderr
    assert "offline mode is enabled" in done.stderr
    assert "unset HF_HUB_OFFLINE" in done.stderr
    assert f"the report is in {tmp_path / 'r'}" in done.stderr
    assert (tmp_path / "r" / "summary.json").is_file()
    assert "gqa" in done.stdout


@pytest.fixture
def push(
    runs: list[Path], hub: Hub, run_compare: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`compare --push-to-hub` in this process, logged in at the hub on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    where = ("--accept", "input", "--push-to-hub", "me/found", "-o", tmp_path / "r")
    return lambda *args: run_compare(*runs, *where, *args)


def test_hub_gets_statistics_into_a_private_dataset(push: Callable[..., Result], hub: Hub, tmp_path: Path) -> None:
    done = push("--html")
    assert done.exit_code == 0, done.stderr
    assert f"pushed to hub: {hub.url}/datasets/me/found" in done.stderr
    assert hub.private == [True]
    assert hub.tokens == {"Bearer hf_test"}
    assert set(hub.files) == {"README.md", "summary.json", "divergence.csv", "divergence.png"}
    assert hub.files["divergence.csv"] == (tmp_path / "r" / "divergence.csv").read_bytes()
    assert not [name for name, data in hub.files.items() if SECRET in data.decode(errors="replace")]
    assert SECRET in (tmp_path / "r" / "summary.json").read_text()  # the local one has it


def test_hub_gets_the_pairs_when_told_so(push: Callable[..., Result], hub: Hub, tmp_path: Path) -> None:
    done = push("--push-pairs")
    assert done.exit_code == 0, done.stderr
    for name in ("pairs.parquet", "summary.json"):
        assert hub.files[name] == (tmp_path / "r" / name).read_bytes()
    readme = hub.files["README.md"].decode()
    assert "Targets and answers are here" in readme
    front = yaml.safe_load(readme.split("---\n")[1])
    assert {one["config_name"]: one["data_files"] for one in front["configs"]} == {
        "divergence": "divergence.csv",
        "pairs": "pairs.parquet",
    }


def test_a_hub_that_refuses(push: Callable[..., Result], hub: Hub, tmp_path: Path) -> None:
    hub.refuse = 403
    done = push()
    assert done.exit_code == 2
    assert "You don't have the rights" in done.stderr
    assert f"the report is in {tmp_path / 'r'}" in done.stderr


def test_a_hub_that_is_not_there(push: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    done = push()
    assert done.exit_code == 2
    assert "--push-to-hub me/found, http://127.0.0.1:9: " in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push-to-hub", "me/found"], "-o DIR"),
        (["--push-to-hub", "found", "-o", "r"], "expected OWNER/DATASET"),
        (["--push-to-hub", "me/../x", "-o", "r"], "expected OWNER/DATASET"),
        (["--wandb", "a/b/c"], "expected PROJECT or ENTITY/PROJECT"),
        (["--wandb", ""], "expected PROJECT"),
        (["--push-pairs", "-o", "r"], "--push-pairs"),
        (["--push-pairs", "--wandb", "p"], "--push-pairs"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_compared(
    options: list[str],
    message: str,
    run_compare: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_compare("nowhere", "nowhere-else", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_client_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmms_eval_stability.push.find_spec", lambda name: None)
    with pytest.raises(PushError, match=r"lmms-eval-stability\[wandb\]"):
        Push.checked("p", None, False, None)
    with pytest.raises(PushError, match="pip install huggingface_hub"):
        Push.checked(None, "me/found", False, Path("r"))
    assert Push.checked(None, None, False, None).send(None, None) == []  # type: ignore[arg-type]


def test_a_folder_is_needed_in_python_too() -> None:
    with pytest.raises(OptionError, match="-o DIR"):
        Push.checked(None, "me/found", False, None)


def test_the_card_escapes_labels_and_says_what_is_not_there(write_run: WriteRun) -> None:
    base = write_run("base", {"gqa": BASE})
    run = write_run("run", {"gqa": FASTV}, model="<script>|x")
    text = card(compare(base, run).comparison, {"summary.json": b"", "divergence.csv": b""})
    assert "<script>" not in text
    assert "they may be licensed data" in text
    assert "pairs.parquet" not in text


def test_nothing_but_the_examples_leaves_a_summary() -> None:
    summary = {"runs": [{"accepted": [{"kind": "input", "count": 2, "examples": ["doc 1: 'a'"]}], "label": "x"}]}
    left = json.loads(without_examples(json.dumps(summary).encode()))
    assert left == {"runs": [{"accepted": [{"kind": "input", "count": 2, "examples": []}], "label": "x"}]}
