"""The log-probabilities of a samples file, as small columns that grow while its lines are read.

Lines that carry none cost nothing: a column has a place only for those that do. What is no log-probability is counted
and never raised, like everything else that a line may hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from .calibration import LOGGED, RESOLUTION, TopTokens
from .cost import kept_share

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

_NO_TOKEN = -1
_EMPTY_IDS, _EMPTY_LOGPROBS = [_NO_TOKEN] * LOGGED, [nan] * LOGGED
#: Kinds of stages that a log may have before further ones count as unknown: a method of hostile variety stays small.
_MOST_STAGES = 1 << 16


@dataclass(frozen=True)
class LogProbabilities:
    """What the lines of one log say about how sure the model was.

    Attributes:
        docs: (n,) int64, ascending and distinct: the documents whose line says anything.
        ids: (n, 5) int32, first tokens; -1 where there is none. logprobs: (n, 5) float32, nan where there is none.
        answer_logprob: (n,) float32, sum over the answer's tokens; nan where not logged.
        output_tokens: (n,) float32; nan where not logged.
        stages: (n,) int32, place in `kinds` of the line's counts of visual tokens; -1 where not logged.
        kinds: the distinct (layers, visual tokens) of the log.
        malformed: lines whose entries are no log-probabilities; they count as lines without. first_malformed: the
            document of the first.
    """

    docs: NDArray[np.int64]
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    answer_logprob: NDArray[np.float32]
    output_tokens: NDArray[np.float32]
    stages: NDArray[np.int32]
    kinds: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...] = ()
    malformed: int = 0
    first_malformed: int = 0

    def __len__(self) -> int:
        return len(self.docs)

    def top_tokens(self, docs: ArrayLike) -> TopTokens:
        """First tokens of these documents, in their order; nothing where their line says nothing."""
        import numpy as np

        places, known = self._places(docs)
        ids = np.full((len(places), LOGGED), _NO_TOKEN, dtype=np.int64)
        logprobs = np.full((len(places), LOGGED), nan)
        ids[known], logprobs[known] = self.ids[places[known]], self.logprobs[places[known]]
        return TopTokens(ids, logprobs)

    def answers(self, docs: ArrayLike) -> Floats:
        """(m,) log-probability of these documents' answers; nan where their line says nothing."""
        return self._column(docs, self.answer_logprob)

    def tokens(self, docs: ArrayLike) -> Floats:
        """(m,) tokens of these documents' answers; nan where their line says nothing."""
        return self._column(docs, self.output_tokens)

    def kept(self, docs: ArrayLike, layers: int | None) -> Floats:
        """(m,) visual tokens that enter a decoder layer, mean over layers, as a share of the prompt's; nan if unknown.

        Args:
            docs: documents. layers: decoder layers of the model; None where its log does not say.
        """
        import numpy as np

        shares = [nan if layers is None else kept_share(layers, *kind) for kind in self.kinds]
        # the last place is that of -1: not logged
        return self._column(docs, np.array([*shares, nan])[self.stages])

    def _column(self, docs: ArrayLike, values: NDArray[Any]) -> Floats:
        import numpy as np

        places, known = self._places(docs)
        column = np.full(len(places), nan)
        column[known] = values[places[known]]
        return column

    def _places(self, docs: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        import numpy as np

        wanted = np.asarray(docs, dtype=np.int64)
        if not len(self.docs):
            return np.zeros(len(wanted), dtype=np.intp), np.zeros(len(wanted), dtype=bool)
        places = np.minimum(np.searchsorted(self.docs, wanted), len(self.docs) - 1)
        return places, self.docs[places] == wanted


class LogProbabilityColumns:
    """Growing columns of 64 bytes per line that says anything."""

    def __init__(self) -> None:
        self._docs, self._ids, self._logprobs = array("q"), array("i"), array("f")
        self._answer, self._tokens, self._stages = array("f"), array("f"), array("i")
        self._kinds: dict[tuple[tuple[Any, ...], tuple[Any, ...]], int] = {}
        self._malformed = self._first_malformed = 0

    def add(self, doc_id: int, measured: Mapping[str, Any]) -> None:
        """Append what one line's measurements say, if anything."""
        top, answer = measured.get("first_token_logprobs"), measured.get("answer_logprob")
        if top is None and answer is None:
            return
        tokens = _first_tokens(top)
        if tokens is None or not (answer is None or _is_logprob(answer)):
            self._first_malformed = self._first_malformed if self._malformed else doc_id
            self._malformed += 1
            return
        ids, logprobs = tokens
        self._docs.append(doc_id)
        self._ids.extend(ids)
        self._logprobs.extend(logprobs)
        self._answer.append(nan if answer is None else answer)
        count = measured.get("output_tokens")
        self._tokens.append(count if type(count) is int and 0 <= count < 2**31 else nan)
        self._stages.append(self._kind(measured.get("visual_token_layers"), measured.get("visual_tokens")))

    def _kind(self, layers: Any, visual: Any) -> int:
        if type(layers) is not list or type(visual) is not list:
            return -1
        try:
            kind = tuple(layers), tuple(visual)
            place = self._kinds.get(kind)
        except TypeError:  # something that cannot be hashed is no count
            return -1
        if place is None:
            if len(self._kinds) >= _MOST_STAGES:
                return -1
            place = self._kinds[kind] = len(self._kinds)
        return place

    def table(self) -> LogProbabilities:
        """The columns, by document; of several lines of a document the first counts, as in pairing."""
        import numpy as np

        docs = np.array(self._docs, dtype=np.int64)
        distinct, first = np.unique(docs, return_index=True)
        return LogProbabilities(
            distinct,
            np.array(self._ids, dtype=np.int32).reshape(-1, LOGGED)[first],
            np.array(self._logprobs, dtype=np.float32).reshape(-1, LOGGED)[first],
            np.array(self._answer, dtype=np.float32)[first],
            np.array(self._tokens, dtype=np.float32)[first],
            np.array(self._stages, dtype=np.int32)[first],
            tuple(self._kinds),
            self._malformed,
            self._first_malformed,
        )


def _first_tokens(top: Any) -> tuple[list[int], list[float]] | None:
    """Ids and log-probabilities of the most probable tokens, best first and filled up to five; None for what is none.

    A token that the checkpoint's logits processors forbid has a log-probability of minus infinity: it is no token.
    """
    if top is None:
        return _EMPTY_IDS, _EMPTY_LOGPROBS
    if type(top) is not list:
        return None
    try:
        found = [(logprob, token) for token, _, logprob in top[:LOGGED]]
    except (TypeError, ValueError):
        return None
    if not all(type(token) is int and 0 <= token < 2**31 and _is_logprob(logprob) for logprob, token in found):
        return None
    found = [one for one in found if isfinite(one[0])]
    # the log has the best one first; a stable sort of five sorted items is nearly free
    found.sort(key=_descending)
    missing = LOGGED - len(found)
    ids, logprobs = [token for _, token in found], [logprob for logprob, _ in found]
    return ids + _EMPTY_IDS[:missing], logprobs + _EMPTY_LOGPROBS[:missing]


def _descending(item: tuple[float, int]) -> float:
    return -item[0]


def _is_logprob(value: Any) -> bool:
    """A number up to 0, or a hair above it by rounding; never nan."""
    return type(value) in (float, int) and value <= RESOLUTION
