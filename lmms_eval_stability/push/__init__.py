"""A comparison for Weights & Biases and for a Hugging Face dataset, through their official clients.

Statistics only, unless answers are asked for: questions, targets and answers may be licensed data.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..comparison import Comparison
from ..errors import OptionError, PushError

#: Files of `-o DIR` without a word of a question or an answer, and those with them.
STATISTICS = ("summary.json", "divergence.csv", "divergence.png")
ANSWERS = ("pairs.parquet", "report.html")
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"


@dataclass(frozen=True)
class Push:
    """Where a comparison goes, as the command line was told.

    Attributes:
        wandb: "PROJECT" or "ENTITY/PROJECT"; empty for nowhere. hub: "OWNER/DATASET"; empty for nowhere.
        answers: push what holds questions, targets and answers, too (`ANSWERS`).
    """

    wandb: str = ""
    hub: str = ""
    answers: bool = False

    @classmethod
    def checked(cls, wandb: str | None, hub: str | None, answers: bool, output: Path | None) -> Push:
        """The options as given; the clients are looked for, but not imported.

        Raises OptionError for names that cannot be, and PushError for a client that is not installed: before anything
        is compared.
        """
        if hub is not None and output is None:
            raise OptionError("--push-to-hub uploads files of the report: name their folder with -o DIR")
        if answers and (output is None or (wandb is None and hub is None)):
            raise OptionError("--push-pairs adds files of -o DIR to --wandb or --push-to-hub: name both")
        if hub is not None and not re.fullmatch(f"{_NAME}/{_NAME}", hub):
            raise OptionError(f"--push-to-hub {hub!r}: expected OWNER/DATASET")
        if wandb is not None and not re.fullmatch(r"(?:[^/\\#?%:]{1,128}/)?[^/\\#?%:]{1,128}", wandb):
            raise OptionError(f"--wandb {wandb!r}: expected PROJECT or ENTITY/PROJECT")
        if wandb is not None and find_spec("wandb") is None:
            raise PushError('--wandb: wandb is not installed; pip install "lmms-eval-stability[wandb]"')
        if hub is not None and find_spec("huggingface_hub") is None:
            raise PushError("--push-to-hub: huggingface_hub is not installed; pip install huggingface_hub")
        return cls(wandb or "", hub or "", answers)

    def send(self, comparison: Comparison, folder: Path | None) -> list[str]:
        """Push, and say of each target where the comparison now is.

        Args:
            comparison: what was found.
            folder: of the report's files, which are complete; None without any.

        Raises PushError, with what went wrong at each target, after all of them were tried.
        """
        from .hub import push_to_hub
        from .tracking import push_to_wandb

        files = {} if folder is None else files_to_push(folder, self.answers)
        sent: list[str] = []
        failed: list[str] = []
        for wanted, push in ((self.wandb, push_to_wandb), (self.hub, push_to_hub)):
            try:
                sent += [push(wanted, comparison, files)] if wanted else []
            except PushError as error:
                failed.append(str(error))
        if failed:
            kept = "" if folder is None else f"\nnothing is lost: the report is in {folder}"
            done = "".join(f"\n{line}" for line in sent)
            raise PushError("\n".join(failed) + done + kept)
        return sent


def files_to_push(folder: Path, answers: bool) -> dict[str, bytes]:
    """Files of a report by name, those that are there."""
    names = (*STATISTICS, *(ANSWERS if answers else ()))
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    if not answers:
        files["summary.json"] = without_examples(files["summary.json"])
    return files


def without_examples(summary: bytes) -> bytes:
    """A summary.json without its examples and details of accepted problems: they quote prompts, targets and answers."""
    document = json.loads(summary)
    for run in document["runs"]:
        run["accepted"] = [
            {**problem, **{key: [] for key in ("examples", "details") if key in problem}} for problem in run["accepted"]
        ]
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
