"""Studies whose processes are stand-ins for lmms-eval: they write its logs at once, or fail as they are told."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmms_eval_stability.study import Plan, load_study, plan_study
from lmms_eval_stability.study.engines.local import LocalEngine, Slot
from lmms_eval_stability.study.progress import StudyProgress
from lmms_eval_stability.study.runner import StudyResult, run_plan
from lmms_eval_stability.study.store import Store

STAND_IN = Path(__file__).parent / "stand_in"

SMALL = """
name: small
tasks: [{task: gqa, samples: 20}]
bases: {demo: {family: llava, model_args: {pretrained: demo}}}
reruns: 1
methods:
  fastv: {method: fastv, model_args: {k: 3, r: 0.5}}
engine: {shard: 8}
"""


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended, or ends soon; one that nobody waits for counts."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@dataclass
class Bench:
    """A folder for one study, and the stand-in that its processes are."""

    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def store(self) -> Store:
        return Store(str(self.out))

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the stand-in was called with, in order."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("call-*"))]

    @property
    def environment(self) -> dict[str, str]:
        """For a process whose own processes shall be stand-ins."""
        return {**os.environ, "PYTHONPATH": str(STAND_IN), "STAND_IN": str(self.folder)}

    def behave(self, **how: Any) -> None:
        (self.folder / "how.json").write_text(json.dumps({"total": 20, **how}))

    def write(self, text: str = SMALL) -> Path:
        path = self.folder / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def plan(self, text: str = SMALL) -> Plan:
        return plan_study(load_study(self.write(text)))

    def run(self, plan: Plan, workers: int = 2, store: Store | None = None) -> StudyResult:
        """Run a plan in this process, with stand-ins."""
        output = io.StringIO()
        engine = LocalEngine([Slot(f"CPU {n}", {}) for n in range(workers)])
        with StudyProgress(Console(file=output, width=1000)) as progress:
            result = run_plan(plan, store or self.store, engine, progress, str(self.folder / "work"))
        self.said = output.getvalue().splitlines()
        return result

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "lmms_eval_stability.cli", "study", str(self.write()), "-o", str(self.out), *more]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    made.behave()
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    return made


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[str], str]:
    """Return a function: the text of a YAML -> what is said of it, without the file's name."""
    from lmms_eval_stability.study import StudyConfigError

    def read(text: str) -> str:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(StudyConfigError) as caught:
            load_study(path)
        return str(caught.value).replace(str(path), "F")

    return read
