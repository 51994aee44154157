"""Which text of a logged line is the prediction: what the model wrote, what the filters left, or what was scored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..samples import CHOICE, answer_of
from .base import Adapter

if TYPE_CHECKING:
    from ..log_lines import Row

RAW, FILTERED, SCORED = "raw", "filtered", "scored"

#: Names for `--prediction`, each with what it compares.
POLICIES = {
    SCORED: "what the benchmark compares: the normalised answer or the extracted letter",
    FILTERED: "the text after lmms-eval's filters, character by character",
    RAW: "the text that the model wrote, character by character",
}


def with_policy(adapter: Adapter, policy: str) -> Adapter:
    """The adapter with other predictions; scores, and the benchmark's own metrics, stay what they are."""
    if policy == SCORED:
        return adapter
    logged = _written if policy == RAW else None
    return replace(adapter, normalise=str, logged_prediction=logged, parses=False)


def _written(row: Row) -> str | None:
    """The answer before any filter; None where the filters changed nothing, or where the answer is no text."""
    if "resps" not in row or answer_of(row["filtered_resps"])[1] == CHOICE:
        return None
    return answer_of(row["resps"])[0]
