"""What every token-reduction method shares: attaching to a model, and knowing what was really dropped.

A method is a frozen dataclass of parameters with pure functions on tensors. ``attach`` is a context manager, in the
style of NVIDIA's kvpress: inside it the model runs with the method, outside it the model is exactly as it was.

    with FastV(k=3, r=0.5).attach(model, family) as session:
        ids = model.generate(**inputs)
        session.rows[0].visual_tokens        # (576, 288)
    session.require_pruned()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lmms_eval_stability.model_wrappers.families.base import Family
from lmms_eval_stability.model_wrappers.token_reduction.beginning import Beginning
from lmms_eval_stability.model_wrappers.token_reduction.errors import (
    AlreadyAttachedError,
    NothingPrunedError,
    UnsupportedCallError,
)
from lmms_eval_stability.model_wrappers.token_reduction.trace import RowTrace

if TYPE_CHECKING:
    from lmms_eval_stability.model_wrappers.vision_reuse import VisionReuse

_attached: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class RowTokens:
    """Visual tokens of one batch row on their way through the model.

    Attributes:
        layers: Decoder layers at whose input the number was taken; the first is 0.
        visual_tokens: Visual tokens entering each of those layers, e.g. ``(576, 288)`` at layers ``(0, 3)``.
        diagnostics: What a method has to say of each image beside that, by name: one number per image of the row, None
            for an image that was left as it is; one for the row of a method inside the language model. They are
            measured, so two rows may be equal without them.
    """

    layers: tuple[int, ...]
    visual_tokens: tuple[int, ...]
    diagnostics: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict, compare=False)

    @property
    def dropped(self) -> int:
        """Visual tokens of the prompt that do not reach the last layer."""
        return self.visual_tokens[0] - self.visual_tokens[-1]


@dataclass
class _Pin:
    """Where the prompt of each row ends, for every forward pass made while it is in force."""

    columns: Tensor  # (rows,)
    recorded: bool = False


class Session:
    """What happened since a method was attached, and where the prompts of the current batch end.

    Attributes:
        rows: One ``RowTokens`` per batch row of the latest prefill (per prompt, not per beam).
        prefills: Prefills seen; without a KV cache all steps of one ``generate`` call count as one.
        prefills_with_images: Those with at least one visual token.
        tokens_seen: Visual tokens in all prefills.
        tokens_dropped: Visual tokens that did not reach the last layer.
        tracing: Set it to have ``traces`` recorded; off at first, as it costs time.
        traces: Which visual tokens are left at each of a row's layers, for every one of ``rows``; empty unless
            ``tracing``.
        spectrum: Set it to have every row's ``diagnostics`` hold ``ipr_full`` and ``ipr_kept``, see ``ipr``; off at
            first. Methods that change pixels then encode every image in both sizes.
        vision: Keeps what is made of an image for its next question; None: every image is encoded every time.
        suspended: Passes are left alone: they go on from a prefix that the method has dealt with, or make one that it
            need not deal with.
    """

    def __init__(self, method: TokenReducer) -> None:
        self.method = method
        self.rows: tuple[RowTokens, ...] = ()
        self.prefills = 0
        self.prefills_with_images = 0
        self.tokens_seen = 0
        self.tokens_dropped = 0
        self.tracing = False
        self.traces: tuple[RowTrace, ...] = ()
        self.spectrum = False
        self.vision: VisionReuse | None = None
        self.suspended = False
        self._pin: _Pin | None = None
        self._beginning: Beginning | None = None

    @contextmanager
    def pin_query(self, columns: Sequence[int] | Tensor) -> Iterator[None]:
        """Say where each prompt ends, for forward passes whose input goes on after it.

        Methods that rank tokens by the attention of the prompt's last token must not look at what follows: a candidate
        answer that is being scored, or tokens generated so far without a KV cache. ``generate`` pins by itself; a plain
        forward pass takes the last token that is not padding unless told otherwise.

        Args:
            columns: One number per row of ``input_ids``: the column, padding included, of its last prompt token.
        """
        pin = _Pin(torch.as_tensor(columns, dtype=torch.long).reshape(-1))
        before, self._pin = self._pin, pin
        try:
            yield
        finally:
            self._pin = before

    @contextmanager
    def suspension(self) -> Iterator[None]:
        """Leave passes inside the ``with`` block alone; see ``suspended``."""
        self.suspended = True
        try:
            yield
        finally:
            self.suspended = False

    @contextmanager
    def going_on(self, beginning: Beginning) -> Iterator[None]:
        """Say that the first pass inside the ``with`` block is a prefill that goes on from what some layers have seen.

        For methods inside the language model.
        """
        self._beginning = beginning
        try:
            yield
        finally:
            self._beginning = None

    def take_beginning(self) -> Beginning | None:
        """Return what the pass that begins now goes on from, once."""
        found, self._beginning = self._beginning, None
        return found

    @property
    def pinned(self) -> bool:
        """Whether the end of the prompts is already given."""
        return self._pin is not None

    def query_columns(self, input_ids: Tensor, real: Tensor | None) -> Tensor:
        """Return the column of the query of each row.

        Args:
            input_ids: (batch, length).
            real: (batch, length) bool, False on padding; None when there is none.

        Returns:
            (batch,) long. With a pin for fewer rows than the batch has (beams, several samples per prompt), each row of
            the pin serves equally many neighbouring batch rows.
        """
        batch, length = input_ids.shape
        if self._pin is None:
            if real is None:
                return torch.full((batch,), length - 1, device=input_ids.device)
            return length - 1 - real.flip(1).int().argmax(dim=1)
        columns = self._pin.columns.to(input_ids.device)
        if batch % len(columns):
            raise UnsupportedCallError(f"queries are pinned for {len(columns)} rows, but the batch has {batch}")
        columns = columns.repeat_interleave(batch // len(columns))
        if bool(((columns < 0) | (columns >= length)).any()):
            raise UnsupportedCallError(f"pinned query columns {columns.tolist()} are not among {length} columns")
        if real is not None and not bool(real.gather(1, columns[:, None]).all()):
            raise UnsupportedCallError(f"pinned query columns {columns.tolist()} point at padding")
        return columns

    def record(self, rows: Sequence[RowTokens], traces: Sequence[RowTrace] = ()) -> None:
        """Note the outcome of one prefill, given for every row of the batch; ``traces`` when ``tracing``."""
        step = 1 if self._pin is None else len(rows) // len(self._pin.columns)
        self.rows, self.traces = tuple(rows[::step]), tuple(traces[::step])
        rows = self.rows
        if self._pin is not None:
            if self._pin.recorded:
                return
            self._pin.recorded = True
        self.prefills += 1
        self.prefills_with_images += any(row.visual_tokens[0] for row in rows)
        self.tokens_seen += sum(row.visual_tokens[0] for row in rows)
        self.tokens_dropped += sum(row.dropped for row in rows)

    def require_pruned(self, *, expect_images: bool = False) -> None:
        """Raise ``NothingPrunedError`` if the method should have dropped tokens and dropped none.

        Args:
            expect_images: The caller knows that there were images, so that a session which saw no visual token at all
                (a placeholder that was not recognised, say) is an error too. Without it a text-only run is in order.
        """
        if self.tokens_dropped or not self.method.drops_tokens:
            return
        if self.prefills_with_images:
            raise NothingPrunedError(
                f"{self.method} dropped none of the {self.tokens_seen} visual tokens"
                f" in {self.prefills_with_images} prefills; the results are those of the base model"
            )
        if expect_images:
            raise NothingPrunedError(
                f"{self.method} saw no visual token in {self.prefills} prefills although there were images;"
                " the results are those of the base model"
            )


@dataclass(frozen=True)
class TokenReducer(ABC):
    """Base of all methods: parameters in, a context manager out.

    Subclasses check their parameters in ``__post_init__`` and what depends on the model in ``install``, and raise
    ``InvalidParameterError`` with the offending value.
    """

    #: Whether images are changed before they are encoded, so that the vision tower needs their pixels every time.
    changes_pixels: ClassVar[bool] = False
    #: Whether all is done when the language model has read the last visual token.
    acts_before_llm: ClassVar[bool] = False

    @property
    @abstractmethod
    def drops_tokens(self) -> bool:
        """Whether the parameters ask for any token to be dropped."""

    @abstractmethod
    def install(self, model: Any, family: Family, session: Session, stack: ExitStack) -> None:
        """Check the model, patch it, and push the way back of each patch onto ``stack``."""

    @contextmanager
    def attach(self, model: Any, family: Family) -> Iterator[Session]:
        """Run ``model`` with this method inside the ``with`` block; restore it afterwards, also on exceptions.

        Args:
            model: A transformers ``...ForConditionalGeneration`` model, not wrapped by anything.
            family: Knows where the parts of ``model`` are.

        Yields:
            The session: statistics, and ``pin_query`` for inputs that go on after the prompt.
        """
        if model in _attached:
            raise AlreadyAttachedError(f"cannot attach {self}: the model already runs with a token-reduction method")
        with ExitStack() as stack:
            session = Session(self)
            self.install(model, family, session, stack)
            _attached.add(model)
            stack.callback(_attached.discard, model)
            yield session
