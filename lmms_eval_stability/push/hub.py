"""A comparison as a dataset of the Hugging Face Hub: files of the report and a card that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..comparison import Comparison
from ..errors import PushError
from ..report.markdown import to_markdown
from ..report.values import printable

_REMEDY = (
    "log in with `hf auth login` or HF_TOKEN (a token that may write), unset HF_HUB_OFFLINE, "
    "and check that the dataset is yours"
)
_WHAT = {
    "divergence.csv": "one row per run and task: DR, NDR, PDR with 95 % intervals, scores, noise floor",
    "summary.json": "the same with confounders, warnings, categories and overlap between runs",
    "divergence.png": "DR and NDR against the score drop",
    "pairs.parquet": "one row per sample and run: target, both predictions, verdicts",
    "report.html": "the whole comparison as a page, with a browser of the changed answers",
}


def push_to_hub(dataset: str, comparison: Comparison, files: Mapping[str, bytes]) -> str:
    """Make the dataset if there is none, private, and put the files and their card into it in one commit. Says where.

    A dataset that exists stays as visible as it is; files of earlier comparisons are overwritten, others left alone.

    Raises PushError when the client is offline or not logged in, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    content = {**files, "README.md": card(comparison, files).encode()}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in content.items()]
    api = HfApi(library_name="lmms-eval-stability")
    try:
        url = api.create_repo(dataset, repo_type="dataset", private=True, exist_ok=True)
        api.create_commit(
            dataset,
            operations,
            commit_message=f"Comparison with {printable(comparison.label)}",
            repo_type="dataset",
        )
    except Exception as error:  # of the client, of its HTTP library, of the network: it has no common base
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise PushError(f"--push-to-hub {dataset}, {api.endpoint}: {reason}; {_REMEDY}") from error
    return f"hub: {url}"


def card(comparison: Comparison, names: Mapping[str, object]) -> str:
    """The dataset card: what was compared, the table, and what the files hold."""
    has_pairs = "pairs.parquet" in names
    data = {"divergence": "divergence.csv"} | ({"pairs": "pairs.parquet"} if has_pairs else {})
    configs = "".join(f"- config_name: {name}\n  data_files: {file}\n" for name, file in data.items())
    listed = "\n".join(f"- `{name}`: {_WHAT[name]}" for name in names)
    figure = "\n![DR and NDR against the score drop](divergence.png)\n" if "divergence.png" in names else ""
    return f"""---
pretty_name: Divergence of accelerated vision-language models
tags:
- lmms-eval-stability
- lmms-eval
- evaluation
configs:
{configs}---

# Which answers changed

Accelerated runs beside a baseline, sample by sample: DR is the share of samples whose answer differs, NDR of those that
were right and are wrong, PDR the other way round. Made by `lmms-eval-stability compare --push-to-hub`.

{printable(to_markdown(_unquoted(comparison)))}{figure}
## Files

{listed}

{_PAIRS_NOTE if has_pairs else _STATISTICS_NOTE}
"""


def _unquoted(comparison: Comparison) -> Comparison:
    """Without the examples of accepted problems: they quote prompts, targets and answers."""
    runs = [
        replace(run, accepted=tuple(replace(problem, examples=(), details=()) for problem in run.accepted))
        for run in comparison.runs
    ]
    return replace(comparison, runs=tuple(runs))


_STATISTICS_NOTE = (
    "These are statistics. Questions, targets and answers are not here: they may be licensed data of the benchmarks."
)
_PAIRS_NOTE = (
    "**Targets and answers are here, and in the page questions, too.** They come from the benchmarks named above and "
    "from the models, whose licences apply; this card grants none."
)
