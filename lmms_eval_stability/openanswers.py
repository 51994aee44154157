"""Open answers: where two texts part, and how many words they share.

DR says of a long answer only that something changed; one other word and another story count the same. These numbers
compare the run's answer with the baseline's, not with a reference, so they need no score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from .divergence import NO_RATE, Rate, wilson


@dataclass(frozen=True)
class OpenAnswers:
    """Answers of a run beside the baseline's.

    Attributes:
        n: pairs. same: share whose tokens are all the same.
        first_divergent: median place, from 0, of the first divergent token among the pairs that differ; nan for none.
        kept: mean over all pairs of the share of the baseline's answer before that token; 1 where nothing differs.
        token_f1: mean of `token_f1` over all pairs.
        token_f1_changed: the same over the pairs that differ; nan for none.
    """

    n: int
    same: Rate
    first_divergent: float
    kept: float
    token_f1: float
    token_f1_changed: float


def first_divergent_token(baseline: str, run: str) -> int | None:
    """Place, from 0, of the first token in which two answers differ; None when no token does.

    Tokens are parted by white space, so blanks and line ends do not count; case and punctuation do. Where one answer
    is the beginning of the other it is the shorter one's length. (Who What Benchmark measures the same on the model's
    own tokens; words need no tokenizer and compare across models.)
    """
    one, other = baseline.split(), run.split()
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def token_f1(baseline: str, run: str) -> float:
    """Harmonic mean of precision and recall of tokens, as bags; symmetric, 1 for the same tokens in any order.

    SQuAD's F1 (Rajpurkar et al., EMNLP 2016) without its clean-up of articles, case and punctuation: give it answers
    that went through the benchmark's own. Two answers without tokens agree (1), one without and one with do not (0).
    """
    one, other = Counter(baseline.split()), Counter(run.split())
    tokens = one.total() + other.total()
    return 2 * (one & other).total() / tokens if tokens else 1.0


def compare_open_answers(baseline: Sequence[str], run: Sequence[str]) -> OpenAnswers:
    """Summary over paired answers; nan for no pairs.

    Raises ValueError for unequal numbers of answers.
    """
    if len(baseline) != len(run):
        raise ValueError(f"{len(baseline)} answers against {len(run)}: pair them first")
    n = len(baseline)
    if not n:
        return OpenAnswers(0, NO_RATE, nan, nan, nan, nan)
    from statistics import fmean, median

    both = list(zip(baseline, run, strict=True))
    places = [first_divergent_token(a, b) for a, b in both]
    kept = [1.0 if place is None else _kept(place, a) for place, (a, _) in zip(places, both, strict=True)]
    scores = [token_f1(a, b) for a, b in both]
    differing = [place for place in places if place is not None]
    changed = [score for score, place in zip(scores, places, strict=True) if place is not None]
    return OpenAnswers(
        n=n,
        same=wilson(n - len(differing), n),
        first_divergent=float(median(differing)) if differing else nan,
        kept=fmean(kept),
        token_f1=fmean(scores),
        token_f1_changed=fmean(changed) if changed else nan,
    )


def _kept(place: int, baseline: str) -> float:
    """Share of the baseline's tokens before the place; 0 where the baseline said nothing and the run something."""
    tokens = len(baseline.split())
    return place / tokens if tokens else 0.0
