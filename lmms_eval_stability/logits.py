"""How far acceleration moved the first token's distribution, from the five tokens that each run logged.

A flip is a threshold crossed; the distribution moves before. The full distributions are not in the logs (a vocabulary
per sample), so what is computed is a lower bound of their divergence. llama.cpp's perplexity tool reports the same
figures over all tokens of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

from .calibration import RESOLUTION, TopTokens
from .divergence import NO_RATE, Rate, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CHUNK = 20_000


@dataclass(frozen=True)
class FirstTokens:
    """First-token distributions of a run against the baseline's.

    Attributes:
        n: samples for which both runs logged them. missing: the others.
        same_top: share with the same most probable token.
        mean_kl, median_kl, p99_kl: of `first_token_kl`, in nats.
        no_common: samples whose two logs name no token in common.
    """

    n: int
    missing: int
    same_top: Rate
    mean_kl: float
    median_kl: float
    p99_kl: float
    no_common: int


def compare_first_tokens(baseline: TopTokens, run: TopTokens) -> FirstTokens:
    """Summary over paired samples; nan when no sample has both distributions."""
    import numpy as np

    if baseline.ids.shape != run.ids.shape:
        raise ValueError(f"{len(baseline.ids)} samples against {len(run.ids)}: pair them first")
    # every token beside every other one: of all samples at once that would be the largest thing in memory
    parts = [
        (baseline.part(start, start + _CHUNK), run.part(start, start + _CHUNK))
        for start in range(0, len(baseline.ids), _CHUNK)
    ]
    divergence = np.concatenate([np.empty(0), *(first_token_kl(*part) for part in parts)])
    known = ~np.isnan(divergence)
    n = int(known.sum())
    if not n:
        return FirstTokens(0, len(divergence), NO_RATE, nan, nan, nan, 0)
    median, p99 = np.quantile(divergence[known], [0.5, 0.99])
    return FirstTokens(
        n=n,
        missing=len(divergence) - n,
        same_top=wilson(int((baseline.ids[known, 0] == run.ids[known, 0]).sum()), n),
        mean_kl=float(divergence[known].mean()),
        median_kl=float(median),
        p99_kl=float(p99),
        no_common=n - sum(int(_partners(*part)[0].any(axis=1).sum()) for part in parts),
    )


def first_token_kl(baseline: TopTokens, run: TopTokens) -> Floats:
    """(n,) a lower bound, in nats, of KL(baseline || run) of the first token; nan where one of both is not logged.

    Exactly: the vocabulary is parted into the tokens that both logs name, one by one; the tokens U that only the
    baseline's log names, together; and all others. The baseline's probabilities of these parts are known. The run's are
    too, except how its unlogged mass is split between U and the others; of U it is known that no token exceeds the
    least of the run's logged ones. Of the splits that respect this the one with the least divergence is taken.

    KL over a partition never exceeds KL over the vocabulary (the data-processing inequality), and the split errs the
    same way: values are biased downwards, and upwards by rounding only, about 1e-5. The bound is close when the logged
    tokens hold most of both distributions. What is left of 1 beside the logged tokens carries their rounding: less than
    1e-6 of it counts as 0 for the baseline, and as 1e-6 for the run.
    """
    import numpy as np

    common, partner = _partners(baseline, run)
    p, q = (np.where(top.ids >= 0, np.exp(np.nan_to_num(top.logprobs, nan=-np.inf)), 0.0) for top in (baseline, run))
    q_common = np.where(common, np.take_along_axis(q, partner, 1), 0.0)
    p_only, p_others = np.where(common, 0.0, p).sum(axis=1), _left(p)
    unlogged = _left(q)
    q_others = unlogged + np.maximum(q.sum(axis=1) - q_common.sum(axis=1), 0.0)  # before U takes its part
    # U's part of it as in the baseline, unless that is more than U can have
    both = p_only + p_others
    wanted = q_others * np.divide(p_only, both, out=np.zeros_like(both), where=both > 0)
    least = np.where(run.ids >= 0, q, 1.0).min(axis=1)  # 1 for none at all, which is masked below
    room = ((baseline.ids >= 0) & ~common).sum(axis=1) * least
    q_only = np.minimum(wanted, np.minimum(room, unlogged))
    divergence = _term(np.where(common, p, 0.0), q_common).sum(axis=1)
    divergence += _term(p_only, np.maximum(q_only, RESOLUTION))
    divergence += _term(p_others, np.maximum(q_others - q_only, RESOLUTION))
    logged = (baseline.ids[:, 0] >= 0) & (run.ids[:, 0] >= 0)
    # where nothing moved, rounding can leave the sum a hair below 0
    return np.asarray(np.where(logged, np.maximum(divergence, 0.0), nan), dtype=float)


def _left(probabilities: Floats) -> Floats:
    """(n,) what the logged tokens leave of 1; 0 where that is no more than their rounding."""
    import numpy as np

    left = 1 - probabilities.sum(axis=1)
    return np.asarray(np.where(left > RESOLUTION, left, 0.0), dtype=float)


def _partners(baseline: TopTokens, run: TopTokens) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """(n, 5) whether the run's log names the baseline's token, and (n, 5) its place there."""
    if baseline.ids.shape != run.ids.shape:
        raise ValueError(f"{len(baseline.ids)} samples against {len(run.ids)}: pair them first")
    equal = (baseline.ids[:, :, None] == run.ids[:, None, :]) & (baseline.ids[:, :, None] >= 0)
    common: NDArray[np.bool_] = equal.any(axis=2)
    return common, equal.argmax(axis=2)


def _term(p: Floats, q: Floats) -> Floats:
    """p log(p / q), 0 where p is."""
    from scipy.special import rel_entr

    terms: Floats = rel_entr(p, q)
    return terms
