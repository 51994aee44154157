"""What happens while a study runs: live bars in a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from .engines.base import Started
from .estimate import duration
from .worker import Outcome

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class StudyProgress:
    """Cells, processes and samples that are done, samples per second, and failures. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._running: dict[str, str] = {}
        self._begun = time.monotonic()
        self._samples = self._failures = self._ended = self._processes = 0

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
            from rich.progress import TimeElapsedColumn as Elapsed

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
            self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, cells: tuple[int, int], processes: int, samples: int | None, attempt: int) -> None:
        """A round of processes starts.

        Args:
            cells: finished, and all.
            processes: how many this round starts; 0 when all is finished.
            samples: how many documents they answer; None when nobody knows.
            attempt: 1, or more when what failed is run again.
        """
        self._ended, self._processes = 0, processes
        if not processes:
            self._say(f"all {cells[1]} cells are finished")
            return
        again = f"attempt {attempt}: " if attempt > 1 else ""
        if self._bars is None:
            count = "" if samples is None else f", {samples:,} samples"
            self._say(f"{again}{cells[0]} of {cells[1]} cells are finished; {processes} processes to run{count}")
            return
        for name, total, done in (
            ("cells", cells[1], cells[0]),
            ("processes", processes, 0),
            ("samples", samples, 0),
        ):
            if name in self._ids:
                self._bars.remove_task(self._ids[name])
            self._ids[name] = self._bars.add_task(f"{again}{name}", total=total, completed=done, note="")
        self._samples = 0
        self._begun = time.monotonic()

    def event(self, event: Started | Outcome, finished_cells: int) -> None:
        """A process has started or ended; `finished_cells` counts all cells that are complete now."""
        if isinstance(event, Started):
            self._running[event.job.name] = f"{event.job.title} on {event.where}" if event.where else event.job.title
            if self._bars is None:
                call = event.job.call
                how = f"lmms-eval --model {call.model} --model_args {call.model_args_text}"
                self._say(f"start  {event.job.title}: {how} ({event.where})")
        else:
            self._running.pop(event.job.name, None)
            self._ended += 1
            self._samples += event.documents
            self._failures += bool(event.problem)
            self._say_ended(event)
        self._draw(finished_cells)

    def _say_ended(self, outcome: Outcome) -> None:
        count = f"[{self._ended}/{self._processes}]"
        title = outcome.job.title
        if outcome.problem:
            self._say(f"FAILED {count} {title}: {outcome.problem}")
        elif self._bars is None and not outcome.cancelled:
            pace = outcome.documents / outcome.seconds if outcome.seconds else 0.0
            took = f"{duration(outcome.seconds)}, {pace:.1f} samples/s"
            self._say(f"done   {count} {title}: {outcome.documents:,} samples in {took}")

    def _draw(self, finished_cells: int) -> None:
        if self._bars is None or not self._ids:
            return
        pace = self._samples / max(time.monotonic() - self._begun, 1e-9)
        failures = f"{self._failures} failed" if self._failures else ""
        self._bars.update(self._ids["cells"], completed=finished_cells)
        self._bars.update(self._ids["samples"], completed=self._samples, note=f"{pace:.1f} samples/s" if pace else "")
        running = "; ".join(list(self._running.values())[:3]) + ("; ..." if len(self._running) > 3 else "")
        note = ", ".join(filter(None, [failures, running]))
        self._bars.update(self._ids["processes"], completed=self._ended, note=note)

    def _say(self, line: str) -> None:
        """Print one line, above the bars where there are any."""
        from rich.text import Text

        self._console.print(Text(line), soft_wrap=True)
