"""The files of `-o DIR`: written under temporary names and put in place together, so that none is ever half written."""

from __future__ import annotations

import csv
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from ..comparison import Comparison
from ..errors import OutputError
from ..leaderboard import leaderboards
from ..pairing import PairedSamples
from .consistency import to_csv as consistency_csv
from .corruption import to_csv as corruption_csv
from .detection import to_csv as ood_csv
from .figure import save_figure
from .latex import comparison_latex
from .machine import to_csv, to_json
from .markdown import to_markdown
from .pairs_parquet import PairsParquet
from .placing import put_in_place, remove_leftovers, temporary_name
from .reliability import to_csv as reliability_csv

if TYPE_CHECKING:
    from .html import PageCollector

PAIR_COLUMNS = (
    "task",
    "doc_id",
    "run",
    "target",
    "prediction_baseline",
    "prediction_run",
    "score_baseline",
    "score_run",
    "correct_baseline",
    "correct_run",
    "changed",
    "flip",
)


class ReportFolder:
    """Collects pairs while a comparison runs, then writes everything. Use as a context manager.

    Leaving the block without `finish()` (an error, an interrupt) removes what was begun and leaves older files alone.
    `finish()` removes the files of an earlier comparison that this one has not, see `placing`.

    Args:
        path: the folder.
        page: write `report.html` and its figures, too, for which the logs are read once more.
        images: where the page's pictures are, see `html.image_source`.
    """

    def __init__(self, path: Path, *, page: bool = False, images: str | None = None) -> None:
        self.path = path
        self._collector: PageCollector | None = None
        self._images = images
        if page:
            from .html import PageCollector

            self._collector = PageCollector()
        self._pending: dict[Path, Path] = {}
        self._created = False
        self._pairs: IO[str] | None = None
        self._writer: Any = None
        self._parquet: PairsParquet | None = None

    def __enter__(self) -> ReportFolder:
        try:
            self._created = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path)
            self._pairs = self._temporary("pairs.csv").open("w", encoding="utf-8", errors="replace", newline="")
            self._parquet = PairsParquet(self._temporary("pairs.parquet").open("wb"))
        except BaseException as error:
            self.__exit__(type(error), error, None)  # what was begun: Python does not call it here
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        self._writer = csv.writer(self._pairs, lineterminator="\n")
        self._writer.writerow(PAIR_COLUMNS)
        return self

    def add_pairs(self, run: str, pairs: PairedSamples) -> None:
        """Append one row per pair to pairs.csv and pairs.parquet."""
        assert self._parquet is not None
        if self._collector is not None:
            self._collector.add_pairs(run, pairs)
        frame = pairs.frame
        # a copy of one chunk at a time: all rows at once as Python objects would be the largest thing in memory
        for start in range(0, len(frame), 20_000):
            chunk = frame.iloc[start : start + 20_000].assign(task=pairs.task, run=run)
            columns = [chunk[name].tolist() for name in PAIR_COLUMNS]
            try:
                self._write_rows(columns)
                self._parquet.write(columns)
            except OSError as error:
                raise self._failure(error) from error

    def _write_rows(self, columns: list[list[Any]]) -> None:
        rows = zip(*columns, strict=True)
        if sys.version_info < (3, 11):  # whose csv module refuses to write a NUL
            rows = ([v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in row] for row in rows)  # type: ignore[assignment]
        self._writer.writerows(rows)

    def finish(self, comparison: Comparison) -> list[Path]:
        """Write the other files and put all of them in place. Returns their paths."""
        assert self._pairs is not None
        assert self._parquet is not None
        try:
            self._pairs.close()
            self._parquet.close()
            for name, text in {
                "summary.json": to_json(comparison),
                "divergence.csv": to_csv(comparison),
                "divergence.md": to_markdown(comparison),
                "tables.tex": comparison_latex(comparison),
                **leaderboards(comparison),
                **({"consistency.csv": consistency_csv(comparison)} if comparison.consistency else {}),
                **({"reliability.csv": reliability_csv(comparison)} if comparison.measured_reliability else {}),
                **({"ood.csv": ood_csv(comparison)} if any(run.detection for run in comparison.runs) else {}),
                **(
                    {"corruption.csv": corruption_csv(comparison)}
                    if any(run.corruption for run in comparison.runs)
                    else {}
                ),
            }.items():
                self._temporary(name).write_text(text, encoding="utf-8", errors="replace")
            for suffix in ("png", "svg"):
                save_figure(comparison, self._temporary(f"divergence.{suffix}"), suffix)
            if self._collector is not None:
                self._write_page(comparison, self._collector)
            written = put_in_place(self.path, self._pending)
        except OSError as error:
            raise self._failure(error) from error
        return written

    def _write_page(self, comparison: Comparison, collector: PageCollector) -> None:
        from .figures import NEUTRAL
        from .figures import save_figure as save
        from .html import figures_of, html_model, image_source, render

        images = None if self._images is None else image_source(self._images, collector.tasks)
        model = html_model(comparison, collector, images=images)
        text = render(model)
        self._temporary("report.html").write_text(text, encoding="utf-8", errors="replace", newline="\n")
        for name, drawing in (figures_of(model.data) if model.data is not None else {}).items():
            for suffix in ("png", "svg"):
                save(drawing.draw(NEUTRAL), self._temporary(f"{name}.{suffix}"), suffix)

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"-o {self.path}: cannot write there: {error.strerror}")

    def _temporary(self, name: str) -> Path:
        temporary = temporary_name(self.path / name)
        self._pending[self.path / name] = temporary
        return temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pairs is not None:
            with suppress(OSError):  # a full disk, once more for what is still buffered: the first error counts
                self._pairs.close()
        if self._parquet is not None:
            with suppress(OSError):
                self._parquet.close()
        if not self._pending:
            return
        for temporary in self._pending.values():
            temporary.unlink(missing_ok=True)
        if self._created and not any(self.path.iterdir()):
            self.path.rmdir()
