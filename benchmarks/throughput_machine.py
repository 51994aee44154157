"""What a benchmark ran on, and whether the machine was quiet meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

#: Fields of a line of /proc/stat that are idle time; all others are work, that of other virtual machines included.
_IDLE = ("idle", "iowait")
_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True)
class Quiet:
    """What else happened while something was measured.

    Attributes:
        start, end: load averages over a minute.
        others: share of all cores' time that other processes took, or the host withheld; None where the system does not
            say (/proc/stat).
    """

    start: float
    end: float
    others: float | None

    def __str__(self) -> str:
        took = "is unknown" if self.others is None else f"took {100 * self.others:.0f} % of the processors' time"
        return f"load average {self.start:.1f} at the start, {self.end:.1f} at the end; what else ran {took}"


class Watch:
    """Watches the machine from its making on."""

    def __init__(self) -> None:
        self._load, self._busy, self._own, self._wall = os.getloadavg()[0], _busy(), _own(), time.perf_counter()

    def read(self) -> dict[str, Any]:
        """Return a `Quiet` as a dictionary."""
        busy, others = _busy(), None
        if self._busy is not None and busy is not None:
            seconds, cores = busy[0] - self._busy[0], busy[1]
            others = max(0.0, seconds - (_own() - self._own)) / (cores * (time.perf_counter() - self._wall))
        return asdict(Quiet(self._load, os.getloadavg()[0], others))


def _own() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def _busy(path: Path = Path("/proc/stat")) -> tuple[float, int] | None:
    """Seconds of work of all processors since the machine started, and their number."""
    if not path.exists():
        return None
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
    ticks = dict(zip(_FIELDS, map(int, lines[0][1:]), strict=False))
    work = sum(count for name, count in ticks.items() if name not in _IDLE)
    return work / os.sysconf("SC_CLK_TCK"), len(lines) - 1


def machine(device: str) -> str:
    """Processor, cores and versions; no names."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    name = torch.cuda.get_device_name() if device == "cuda" else names[0] if names else platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lmms-eval"))
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {threads} threads; Python {platform.python_version()}, {versions}"
