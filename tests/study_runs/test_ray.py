"""The engine `ray` on real clusters of two nodes on this machine: nodes, workers and drivers that are killed."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from lmms_eval_stability.cli import main
from lmms_eval_stability.runs import load_run
from lmms_eval_stability.study.engines import make_engine
from lmms_eval_stability.study.engines import ray as engine
from lmms_eval_stability.study.errors import ClusterError
from lmms_eval_stability.study.schema import EngineSpec
from lmms_eval_stability.study.store import Store

from .conftest import SMALL, STAND_IN, Bench, gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

#: The embedded model on 48 documents, as it is and accelerated.
REAL = """
name: real
tasks: [{task: shapes_vqa, samples: 2000}]
limit: 48
bases: {demo: {family: llava, model_args: {pretrained: demo}}}
methods:
  fastv: {method: fastv, model_args: {k: 3, r: 0.5}}
offline: true
"""


class TwoNodes:
    """A cluster of two nodes with one CPU each, without Ray in this process.

    Attributes:
        stand_ins: folder of the stand-ins for lmms-eval, which the nodes run while it has a `how.json`.
    """

    def __init__(self, stand_ins: Path) -> None:
        from ray.cluster_utils import Cluster

        self.stand_ins = stand_ins
        self._args: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_log_monitor": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._args, "include_dashboard": False})
        self.address: str = self._cluster.address
        self._second = self._cluster.add_node(**self._args)

    @property
    def raylet(self) -> int:
        """Process of the second node, from which all its workers come."""
        pid: int = self._second.all_processes["raylet"][0].process.pid
        return pid

    def lose_second(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)

    def mend(self) -> None:
        """Start the second node again if a test has lost it."""
        if self._second not in self._cluster.list_all_nodes():
            self._second = self._cluster.add_node(**self._args)

    @contextlib.contextmanager
    def gpu_node(self, gpus: int) -> Iterator[None]:
        """A third node, which says that it has GPUs."""
        node = self._cluster.add_node(**self._args, num_gpus=gpus)
        try:
            yield
        finally:
            self._cluster.remove_node(node)

    def shutdown(self) -> None:
        self._cluster.shutdown()


#: Read by every Python of the nodes at its start.
SITE = """
import os, sys
if os.path.exists(os.path.join(os.environ["STAND_IN"], "how.json")):
    sys.path.insert(0, os.environ["STAND_IN_PACKAGE"])
"""


@pytest.fixture(scope="module")
def cluster_of_the_module() -> Iterator[TwoNodes]:
    """A cluster in a folder with a short name, for the sockets'."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    stand_ins = folder / "stand_ins"
    for path in (folder / "ray", stand_ins, folder / "site"):
        path.mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    environment = {
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder / "site"),
        "STAND_IN": str(stand_ins),
        "STAND_IN_PACKAGE": str(STAND_IN),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = TwoNodes(stand_ins)
        try:
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(cluster_of_the_module: TwoNodes) -> TwoNodes:
    """Two nodes, on which lmms-eval is lmms-eval."""
    cluster_of_the_module.mend()
    for path in cluster_of_the_module.stand_ins.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return cluster_of_the_module


@pytest.fixture
def bench(cluster: TwoNodes) -> Bench:
    """A study's folder; the nodes run stand-ins, which look there."""
    made = Bench(cluster.stand_ins)
    made.behave()
    return made


@pytest.fixture
def address(cluster: TwoNodes) -> str:
    return cluster.address


def wait_for(condition: Callable[[], Any], running: subprocess.Popen[str] | None = None) -> None:
    """Until a condition holds; generous, for machines that do other things, too."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        assert running is None or running.poll() is None, running.communicate()
        time.sleep(0.05)


def lmms_eval_below(parent: int) -> list[psutil.Process]:
    """The lmms-eval processes that descend from a process."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if "lmms_eval" in line and "-c" not in line:
                    found.append(process)
    return found


def start(study: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lmms_eval_stability.cli", "study", str(study), "-o", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(out: Path, run: str) -> list[dict[str, Any]]:
    """The logged lines without what was measured."""
    logged = load_run(out / "runs" / "demo" / run).sample_files["shapes_vqa"].read_text().splitlines()
    found = [json.loads(line) for line in logged]
    for row in found:
        counts = row["token_counts"][0]
        row["measured"] = {
            key: counts[key] for key in ("output_tokens", "input_fingerprint", "image_fingerprint", "visual_tokens")
        }
        del row["token_counts"]
    return found


def shards(out: Path) -> dict[str, list[tuple[int, int]]]:
    """What is finished, by cell."""
    finished = [shard for found in Store(str(out)).finished().values() for shard in found]
    spans: dict[str, list[tuple[int, int]]] = {}
    for shard in sorted(finished, key=lambda shard: shard.span):
        spans.setdefault(shard.cell.split()[0], []).append((shard.span.first, shard.stop))
    return spans


# With stand-ins for lmms-eval


HANGS = {"faults": {"llava_baseline:8": ["hang"]}}


def hanging(bench: Bench) -> dict[str, Any] | None:
    return next((call for call in bench.calls if "child" in call), None)


def doc_ids(bench: Bench, run: str) -> list[int]:
    path = load_run(bench.out / "runs" / "demo" / run).sample_files["gqa"]
    return [json.loads(line)["doc_id"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_driver_and_the_same_command_goes_on(number: int, bench: Bench, address: str) -> None:
    bench.behave(**HANGS)
    running = start(bench.write(), bench.out, "--ray-address", address)
    wait_for(lambda: hanging(bench) and len(shards(bench.out).get("demo/fastv", [])) == 3, running)
    running.send_signal(number)
    _, said = running.communicate(timeout=120)
    call = hanging(bench)
    assert call is not None
    assert gone(call["pid"], 60)
    assert gone(call["child"], 60)
    if number == signal.SIGTERM:
        assert running.returncode == 130, said
        assert "interrupted: what is finished is kept" in said
        assert "Traceback" not in said
        assert not (bench.out / "work").exists()
    again = start(bench.write(), bench.out, "--ray-address", address)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert sorted(call["where"] for call in bench.calls).count("llava_baseline:8") == 3  # with the re-run's
    assert len(bench.calls) == 10
    assert {call["gpus"] for call in bench.calls} == {""}
    assert not (bench.out / "work").exists()
    for run in ("baseline", "baseline_again_1", "fastv"):
        assert doc_ids(bench, run) == list(range(20))


def test_a_killed_worker_and_a_cut_log_are_failed_attempts_of_their_shards(bench: Bench, address: str) -> None:
    bench.behave(faults={"llava_baseline:8": ["hang"], "llava_fastv:0": ["truncate"]})
    running = start(bench.write(), bench.out, "--ray-address", address)
    wait_for(lambda: hanging(bench), running)
    call = hanging(bench)
    assert call is not None
    worker = psutil.Process(call["pid"]).parent()
    assert worker is not None
    worker.kill()
    _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert gone(call["pid"], 60)
    assert gone(call["child"], 60)
    assert said.count(" was killed") == 1
    assert said.count("(cut off: ") == 1
    assert "attempt 2: 1 of 3 cells are finished; 2 processes to run, 16 samples" in said
    assert len(bench.calls) == 9 + 2


def test_what_no_node_has_place_for_is_refused_at_once(bench: Bench, address: str) -> None:
    text = SMALL.replace(
        "{shard: 8}", f"{{shard: 8, kind: ray, address: '{address}', resources: {{cpus: 3, gpus: 2}}}}"
    )
    refused = start(bench.write(text), bench.out)
    _, said = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert "no node of the Ray cluster has 2 GPU, 3 CPU, which a process needs (engine.resources); the most" in said
    assert not bench.calls


def test_processes_get_the_gpus_that_ray_gives_them(cluster: TwoNodes, bench: Bench) -> None:
    with cluster.gpu_node(2):
        running = start(bench.write(), bench.out, "--ray-address", cluster.address)
        _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert {call["gpus"] for call in bench.calls} <= {"0", "1"}  # one of the two, by default, and so on that node
    assert len(bench.calls) == 9
    assert ", GPU 0)" in said


# With lmms-eval itself


def test_a_killed_driver_and_a_lost_node_change_no_row(cluster: TwoNodes, tmp_path: Path) -> None:
    alone, parts, out = tmp_path / "alone.yaml", tmp_path / "parts.yaml", tmp_path / "out"
    alone.write_text(REAL)
    parts.write_text(REAL + "engine: {kind: ray, shard: 24}\n")
    # the driver is killed when something is done, and something is not
    first = start(parts, out, "--ray-address", cluster.address)
    wait_for(lambda: shards(out), first)
    left = lmms_eval_below(cluster.raylet)
    first.kill()
    first.communicate()
    assert all(gone(process.pid, 60) for process in left)
    done = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/*/done.json")}
    assert 0 < len(done) < 4
    # the same command goes on; its second node is lost while a process runs there
    second = start(parts, out, "--ray-address", cluster.address)
    wait_for(lambda: lmms_eval_below(cluster.raylet), second)
    lost = lmms_eval_below(cluster.raylet)
    cluster.lose_second()
    _, said = second.communicate(timeout=500)
    assert second.returncode == 0, said
    assert all(gone(process.pid, 60) for process in lost)
    assert said.count("was lost") == 1
    assert "attempt 2: " in said
    assert {path: path.stat().st_mtime_ns for path in done} == done  # what was done was not run again
    assert shards(out) == {f"demo/{run}": [(0, 24), (24, 48)] for run in ("baseline", "fastv")}
    local = start(alone, tmp_path / "local")
    local.communicate(timeout=500)
    assert local.returncode == 0
    for run in ("baseline", "fastv"):
        assert [row["doc_id"] for row in rows(out, run)] == list(range(48))
        assert rows(out, run) == rows(tmp_path / "local", run)
    compared = [json.loads((folder / "report/demo/summary.json").read_text()) for folder in (out, tmp_path / "local")]
    assert compared[0]["comparisons"] == compared[1]["comparisons"]


# Without a cluster


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("how", ["nothing listens", "not Ray", "left behind"])
def test_a_cluster_that_does_not_answer_is_an_error_within_seconds(
    how: str, no_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_ANSWER", 3.0)
    (tmp_path / "study.yaml").write_text(SMALL)
    before = signal.getsignal(signal.SIGTERM)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if how != "not Ray":
            server.close()
        address = f"127.0.0.1:{port}"
        if how == "left behind":
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        begun = time.monotonic()
        arguments = ["study", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "out"), "--ray-address"]
        result = CliRunner().invoke(main, [*arguments, "auto" if how == "left behind" else address])
    assert time.monotonic() - begun < 60
    assert result.exit_code == 2, result.output
    expected = {
        "nothing listens": f"error: no Ray cluster at {address}: ",
        "not Ray": f"error: what listens at {address} is no head of a Ray cluster",
        "left behind": f"error: no Ray cluster at {address} (engine.address: auto): ",
    }
    assert expected[how] in result.output
    assert "docs/cluster.md" in result.output
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'lmms-eval-stability\[ray\]'"):
        make_engine(EngineSpec(kind="ray"))


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:99999999", "a b:1"])
def test_addresses_that_are_none_are_refused_in_the_yaml_and_on_the_command_line(
    address: str, tmp_path: Path, refused: Callable[[str], str]
) -> None:
    assert "F:8: 'address' must be auto or HOST:PORT" in refused(
        SMALL.replace("{shard: 8}", f"{{shard: 8, kind: ray, address: '{address}'}}")
    )
    (tmp_path / "study.yaml").write_text(SMALL)
    result = CliRunner().invoke(main, ["study", str(tmp_path / "study.yaml"), "--dry-run", "--ray-address", address])
    assert result.exit_code == 2
    assert "must be auto or HOST:PORT" in result.output


def test_a_node_without_the_studys_folder_or_with_other_versions_is_refused(
    bench_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_VISIBLE", 0.0)
    versions = engine.installed_versions(engine.PACKAGES)
    (event,) = engine.work(bench_job, {}, versions, "beacon")
    assert isinstance(event, engine.Refused)
    assert f"does not see {tmp_path}; name a folder on a file system that all nodes share" in event.problem
    (event,) = engine.work(bench_job, {}, {**versions, "torch": "1.0"}, "beacon")
    assert isinstance(event, engine.Refused)
    assert f"has torch {versions['torch']}, but the study was planned with 1.0" in event.problem


@pytest.fixture
def bench_job(tmp_path: Path) -> Any:
    from lmms_eval_stability.study.plan import Call
    from lmms_eval_stability.study.store import Span
    from lmms_eval_stability.study.worker import Job

    return Job("job", "title", Call("m", (), ()), Span(0, 1), (), 1, str(tmp_path), scratch=str(tmp_path / "work"))


def test_room_of_a_node_is_that_of_what_it_has_least_of() -> None:
    needs = engine.Needs(gpus=0.5, cpus=4, memory=32e9)
    assert needs.room({"GPU": 8.0, "CPU": 64.0, "memory": 100e9}) == 3
    assert needs.room({"CPU": 64.0, "memory": 100e9}) == 0
    assert str(needs) == "0.5 GPU, 4 CPU, 32 GB of memory"
