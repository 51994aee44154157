"""Parts of a benchmark: which category a sample belongs to, where its log says so, and the numbers of each part.

A mean hides where acceleration hurts. The same table says which samples share an image, for `bootstrap`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .divergence import Divergence, diverge
from .log_lines import Row, rows_of
from .pairing import PairedSamples

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

#: Name of the category of samples whose log names none; they are shown, not dropped.
NO_CATEGORY = "(none)"
#: Names of what says which samples belong together: the benchmark's own record, and the pixels that the model saw.
CLUSTER, IMAGE = "cluster", "image"
#: Dimension of perturbed tasks, and its categories: samples that the perturbation changed, or left as they were.
INPUT, CHANGED, UNCHANGED = "perturbed input", "changed", "unchanged"

_POPE_SPLITS = {"pope_adv": "adversarial", "pope_pop": "popular", "pope_random": "random"}
_POPE_SPLIT, _POPE_IMAGE = 3000, 6
_MMBENCH_ROTATION = 1_000_000
#: Where perturbed tasks log what was done to a sample, and what of it its categories depend on.
_RECORD, _SAID = "perturbation", ("method", "severity", "changed")

Extractor = Callable[[str, Row], "str | None"]


@dataclass(frozen=True)
class Dimension:
    """One way to part the samples of some benchmarks.

    Attributes:
        name: what a table calls it.
        tasks: lmms-eval task names; each also stands for every name that goes on with "_". None: any task.
        extract: (task, logged line) -> category; None where the line does not say.
        key: the lines' key without which `extract` finds nothing; "" where that is not one key.
    """

    name: str
    tasks: tuple[str, ...] | None
    extract: Extractor
    key: str = ""

    def covers(self, task: str) -> bool:
        """Whether the log of this task may name such categories."""
        return self.tasks is None or any(task == one or task.startswith(f"{one}_") for one in self.tasks)


@dataclass(frozen=True)
class CategoryRow:
    """The numbers of one category: a run against the baseline over its samples alone."""

    dimension: str
    category: str
    row: Divergence

    def record(self) -> dict[str, Any]:
        """One flat dict: dimension, category, and the keys of `Divergence.record`."""
        return {"dimension": self.dimension, "category": self.category, **self.row.record()}


def _field(key: str, name: str) -> Extractor:
    """The text or number `name` in the dict that the line holds under `key`."""

    def extract(_: str, row: Row) -> str | None:
        record = row.get(key)
        value = record.get(name) if isinstance(record, dict) else None
        return str(value) if type(value) in (str, int) and value != "" else None

    return extract


def _level(task: str, row: Row) -> str | None:
    method, severity = (_field("perturbation", name)(task, row) for name in ("method", "severity"))
    return f"{method} {severity}" if method and severity else None


def _input(_: str, row: Row) -> str | None:
    """Whether the perturbation changed anything: a level for letters leaves a question of digits as it is, say."""
    record = row.get("perturbation")
    changed = record.get("changed") if isinstance(record, dict) else None
    return (CHANGED if changed else UNCHANGED) if isinstance(changed, bool) else None


def _image(_: str, row: Row) -> str | None:
    """The digest of the pixels that the model saw, as models of this package log it."""
    counts = row.get("token_counts")
    measured = counts[0] if type(counts) is list and counts else None
    digest = measured.get("image_fingerprint") if type(measured) is dict else None
    return digest if type(digest) is str and digest else None


def _pope_place(task: str, row: Row) -> int | None:
    """The line's place in POPE, if its question id confirms it: ids begin anew with each split of 3,000."""
    doc_id, number = row.get("doc_id"), _field("pope_accuracy", "question_id")(task, row)
    if type(doc_id) is not int or number != str(doc_id % _POPE_SPLIT + 1):
        return None
    return doc_id


def _pope_split(task: str, row: Row) -> str | None:
    """From the name of a task of one split, else from the place: the data has the splits one after the other."""
    for name, split in _POPE_SPLITS.items():
        if task == name or task.startswith(f"{name}_"):
            return split
    place = _pope_place(task, row)
    splits = tuple(_POPE_SPLITS.values())
    return splits[place // _POPE_SPLIT] if place is not None and place < len(splits) * _POPE_SPLIT else None


def _pope_image(task: str, row: Row) -> str | None:
    """POPE asks six questions in a row about each of 500 images, the same ones in the same order in each split."""
    place = _pope_place(task, row)
    return None if place is None else str(place % _POPE_SPLIT // _POPE_IMAGE)


def _mmbench_question(task: str, row: Row) -> str | None:
    """A question and its rotations: their indices differ by multiples of a million."""
    index = _field("gpt_eval_score", "index")(task, row)
    return str(int(index) % _MMBENCH_ROTATION) if index is not None and index.isdecimal() else None


#: All dimensions, in the order of a report.
DIMENSIONS: tuple[Dimension, ...] = (
    Dimension("split", ("pope",), _pope_split),
    Dimension("subject", ("mmmu",), _field("mmmu_acc", "subdomain")),
    Dimension("question type", ("mmmu",), _field("mmmu_acc", "question_type")),
    Dimension("ability", ("mmbench",), _field("gpt_eval_score", "L2-category")),
    Dimension("category", ("mmbench",), _field("gpt_eval_score", "category")),
    Dimension("kind", ("shapes_vqa",), _field("shapes_record", "kind")),
    Dimension("background", ("shapes_vqa_spurious",), _field("shapes_record", "group")),
    Dimension("answerability", ("vizwiz_vqa",), _field("vizwiz_record", "answerability")),
    Dimension("kind", ("vqa_rad",), _field("vqa_rad_record", "kind")),
    Dimension("kind", ("llava_med_conversation",), _field("llava_med_record", "kind")),
    Dimension("domain", ("llava_med_conversation",), _field("llava_med_record", "domain")),
    Dimension(INPUT, None, _input, "perturbation"),
    Dimension("perturbation", None, _field("perturbation", "method"), "perturbation"),
    Dimension("severity", None, _field("perturbation", "severity"), "perturbation"),
    Dimension("perturbation level", None, _level, "perturbation"),
)

#: Where a log says which samples belong together: questions about one image, rotations of one question.
CLUSTERS: tuple[Dimension, ...] = (
    Dimension(CLUSTER, ("pope",), _pope_image),
    Dimension(CLUSTER, ("mmbench",), _mmbench_question),
    Dimension(CLUSTER, ("shapes_vqa",), _field("shapes_record", "image_id")),
    Dimension(CLUSTER, ("vqa_rad",), _field("vqa_rad_record", "image_id")),
    Dimension(CLUSTER, ("llava_med_conversation",), _field("llava_med_record", "image_id")),
    Dimension(IMAGE, None, _image, "token_counts"),
)


def labels_of(task: str, row: Row) -> dict[str, str]:
    """The categories, and the cluster, that one logged line names: name of the dimension -> category."""
    return labeller(task)(row)


def labeller(*tasks: str) -> Callable[[Row], dict[str, str]]:
    """`labels_of` for many lines of one task.

    Args:
        tasks: the task's name and others that say what its lines hold, as the name of the task that it perturbs.
    """
    covered = [
        (one.name, one.key, one.extract, task)
        for one in (*DIMENSIONS, *CLUSTERS)
        for task in [next(filter(one.covers, tasks), None)]
        if task is not None
    ]

    # perturbations are of few kinds: what their records name is found once for each
    of_record = [one for one in covered if one[1] == _RECORD]
    of_line = [one for one in covered if one[1] != _RECORD]
    known: dict[Any, dict[str, str]] = {}

    def record_labels(row: Row, record: Any) -> dict[str, str]:
        said = [record.get(name) for name in _SAID] if type(record) is dict else []
        try:
            kind = (*said, *map(type, said))
            if kind not in known:
                known[kind] = _extracted(of_record, row)
            return known[kind]
        except TypeError:  # something that cannot be hashed
            return _extracted(of_record, row)

    def labels(row: Row) -> dict[str, str]:
        found = _extracted(of_line, row)
        return found if _RECORD not in row else found | record_labels(row, row[_RECORD])

    return labels


def _extracted(covered: list[tuple[str, str, Extractor, str]], row: Row) -> dict[str, str]:
    found = {}
    for name, key, extract, task in covered:
        if (not key or key in row) and (category := extract(task, row)) is not None:
            found[name] = category
    return found


def read_labels(path: Path, task: str) -> pd.DataFrame:
    """The labels of all samples of a `*_samples_<task>.jsonl` file: index doc_id, one object column per dimension.

    Only dimensions that some line names have a column; a line that names none has None there. Lines that are no sample
    records are passed over (`read_samples` counts them), and of several lines of a document the first counts, as in
    pairing.
    """
    import pandas as pd

    labels: dict[int, dict[str, str]] = {}
    for _, row in rows_of(path):
        doc_id = None if isinstance(row, str) else row.get("doc_id")
        if type(doc_id) is int and doc_id not in labels:
            labels[doc_id] = labels_of(task, row)
    names = dict.fromkeys(one.name for one in (*DIMENSIONS, *CLUSTERS))
    present = [name for name in names if any(name in one for one in labels.values())]
    columns = {name: pd.Series([one.get(name) for one in labels.values()], dtype=object) for name in present}
    return pd.DataFrame(columns, index=pd.RangeIndex(len(labels))).set_index(pd.Index(list(labels), name="doc_id"))


def by_category(
    pairs: PairedSamples,
    categories: pd.Series,
    dimension: str,
    baseline: str,
    run: str,
    correct_at: float = 0.9,
) -> list[CategoryRow]:
    """The numbers of each category, numbers and then texts in ascending order, samples without one at the end.

    Scores are means over the pairs of the category, never lmms-eval's own. Small categories have wide intervals, and
    many of them many small p-values: see `multiplicity`.

    Args:
        pairs: of one task.
        categories: by doc_id, such as a column of `read_labels`; documents that it lacks have no category.
        dimension: its name, for the rows.
        baseline, run, correct_at: as for `diverge`.
    """
    import pandas as pd

    names = _named(pairs.frame["doc_id"].to_numpy(), categories)
    places = {str(name): rows for name, rows in pd.Series(names).groupby(names, sort=False).indices.items()}
    rows = []
    for name in sorted(places, key=_rank):
        part = pairs.frame.iloc[places[name]].reset_index(drop=True)
        own = PairedSamples(pairs.task, pairs.metric, part, complete=False, adapter=pairs.adapter)
        rows.append(CategoryRow(dimension, name, diverge(own, baseline, run, correct_at)))
    return rows


def all_categories(
    pairs: PairedSamples, labels: pd.DataFrame | None, baseline: str, run: str, correct_at: float = 0.9
) -> list[CategoryRow]:
    """The numbers of each category of each dimension that a log names.

    Left out are dimensions with one category, which is the whole task; but not whether perturbed inputs differ.

    Args:
        labels: see `samples.SampleTable`. The rest is as for `by_category`.
    """
    found: list[CategoryRow] = []
    if labels is None:
        return found
    for name in labels.columns:
        if name in (CLUSTER, IMAGE):
            continue
        rows = by_category(pairs, labels[name], name, baseline, run, correct_at)
        found += rows if len(rows) > 1 or (name == INPUT and rows[0].category != NO_CATEGORY) else []
    return found


def category_table(rows: list[CategoryRow]) -> pd.DataFrame:
    """One line per category, columns as in `CategoryRow.record`."""
    import pandas as pd

    return pd.DataFrame([row.record() for row in rows])


def _named(docs: NDArray[np.int64], categories: pd.Series) -> NDArray[np.object_]:
    import pandas as pd

    found = categories.reindex(pd.Index(docs))
    return found.where(found.notna(), NO_CATEGORY).astype(str).to_numpy(dtype=object)


def _rank(name: str) -> tuple[bool, bool, int, str]:
    return name == NO_CATEGORY, not name.isdecimal(), int(name) if name.isdecimal() else 0, name
