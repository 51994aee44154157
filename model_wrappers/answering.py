"""From prepared batches to answers with their measurements: the model's side of a run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from torch import Tensor

from lmms_eval_stability.model_wrappers.families import Family
from lmms_eval_stability.model_wrappers.generation import GeneratedRow, GenerationSettings, fill_padding, generate
from lmms_eval_stability.model_wrappers.measurements import Measurements
from lmms_eval_stability.model_wrappers.prefix_reuse import Continuation, PrefixReuse
from lmms_eval_stability.model_wrappers.preparation import Prepared
from lmms_eval_stability.model_wrappers.reading import Read
from lmms_eval_stability.model_wrappers.requests import Candidate, Question
from lmms_eval_stability.model_wrappers.scoring import Likelihood, answer_ids, append_answers, score
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session
from lmms_eval_stability.model_wrappers.vision_reuse import VisionReuse, on_device, stand_in

#: What may be used again for the next question about an image, each including the one before.
REUSE = ("none", "vision", "prefix")


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made.

    Attributes:
        reuse: one of ``REUSE``.
        reuse_bytes: memory for what is kept, for features and for prefixes each.
        use_cache: keep keys and values between generation steps.
        max_new_tokens: overrides the task's number.
    """

    reuse: str = "vision"
    reuse_bytes: int = 2**30
    use_cache: bool = True
    max_new_tokens: int | None = None


class Answerer:
    """Puts batches to a model.

    Attributes:
        vision: keeps and measures what the vision tower makes.
        saw_images: whether any prompt so far had an image.
    """

    def __init__(self, model: Any, tokenizer: Any, family: Family, device: Any, settings: AnswerSettings) -> None:
        self._model, self._tokenizer, self._family, self._device = model, tokenizer, family, device
        self._settings = settings
        self.vision = VisionReuse(model, family, settings.reuse_bytes)
        self.prefixes = None
        if settings.reuse == "prefix":
            self.prefixes = PrefixReuse(model, family, self.vision, settings.reuse_bytes)
        self._placeholders = family.placeholder_ids(model.config)
        self.saw_images = False

    @contextmanager
    def ready(self, session: Session | None) -> Iterator[None]:
        """Patch the model for a run, and forget afterwards what was kept."""
        if session is not None:
            session.vision = self.vision
        self.saw_images = False
        with self.vision.installed():
            try:
                yield
            finally:
                self.forget()

    def forget(self) -> None:
        """Give back the memory of what is kept for later questions."""
        self.vision.clear()
        if self.prefixes is not None:
            self.prefixes.clear()

    def generate(
        self, batch: Sequence[Read[Question]], prepared: Prepared, session: Session | None
    ) -> list[GenerationResult]:
        """Generate the answers of a batch whose questions share their generation arguments."""
        settings = GenerationSettings.from_task(batch[0].request.gen_kwargs, self._family.default_max_new_tokens)
        if self._settings.max_new_tokens is not None:
            settings = dataclasses.replace(settings, max_new_tokens=self._settings.max_new_tokens)
        shares = self._shares(session) and settings.num_beams == 1
        started, seen = time.perf_counter(), self.vision.seconds
        text = on_device(prepared.text, self._device, self._model.dtype)
        tokens: Sequence[RowTokens]
        if shares and self.prefixes is not None and all(prepared.images):
            then = self.prefixes.batch(text, prepared.images, session, settings.max_new_tokens)
            with self._on_prefixes(then, session), self.vision.serving(prepared.all_images):
                rows = self._generate(then.inputs, settings, started)
            tokens = [row or own for row, own in zip(then.rows, self._all_visual(text), strict=True)]
            if session is not None and then.beginning is not None:
                tokens = session.rows
        else:
            with self.vision.serving(prepared.all_images if shares else None):
                rows = self._generate({**text, **self._images(prepared, shares)}, settings, started)
            tokens = self._all_visual(text) if session is None else session.rows
        counts = self._measured(batch, prepared, tokens, self.vision.seconds - seen)
        return [self._result(row, count, settings.until) for row, count in zip(rows, counts, strict=True)]

    def _on_prefixes(self, then: Continuation, session: Session | None) -> AbstractContextManager[None]:
        if session is None:
            return nullcontext()
        return session.suspension() if then.beginning is None else session.going_on(then.beginning)

    def _generate(self, inputs: dict[str, Any], settings: GenerationSettings, started: float) -> list[GeneratedRow]:
        inputs["input_ids"] = fill_padding(inputs["input_ids"], inputs["attention_mask"])
        use_cache = self._settings.use_cache
        return generate(self._model, self._tokenizer, inputs, settings, use_cache=use_cache, started=started)

    def score(self, batch: Sequence[Read[Candidate]], prepared: Prepared, session: Session | None) -> list[Likelihood]:
        """Score the answers of a batch."""
        answers = [answer_ids(self._tokenizer, one.prompt.text, one.answer, self._placeholders) for one in batch]
        shares, seen = self._shares(session), self.vision.seconds
        inputs = {**on_device(prepared.text, self._device, self._model.dtype), **self._images(prepared, shares)}
        whole = append_answers(inputs, answers, self._tokenizer.pad_token_id)
        with self.vision.serving(prepared.all_images if shares else None):
            rows = score(self._model, self._tokenizer, whole, [len(answer) for answer in answers], session)
        tokens = self._all_visual(inputs) if session is None else session.rows
        counts = self._measured(batch, prepared, tokens, self.vision.seconds - seen)
        return [Likelihood(row.loss, row.is_greedy, row.noted_in(n)) for row, n in zip(rows, counts, strict=True)]

    def _shares(self, session: Session | None) -> bool:
        """Whether images are encoded one by one, each once."""
        return self._settings.reuse != "none" and not (session is not None and session.method.changes_pixels)

    def _images(self, prepared: Prepared, shares: bool) -> dict[str, Tensor]:
        images = prepared.all_images
        self.saw_images |= bool(images)
        if shares and len(prepared.images) > 1:
            return stand_in(images, self._device, self._model.dtype)
        return on_device(self._family.join_images(images), self._device, self._model.dtype)

    def _all_visual(self, text: dict[str, Tensor]) -> list[RowTokens]:
        """Return the visual tokens of rows of which none is dropped."""
        placeholders = torch.tensor(self._placeholders, device=text["input_ids"].device)
        visual = torch.isin(text["input_ids"], placeholders) & text["attention_mask"].bool()
        return [RowTokens((0,), (int(n),)) for n in visual.sum(1)]

    def _measured(
        self, batch: Sequence[Read[Any]], prepared: Prepared, tokens: Sequence[RowTokens], vision: float
    ) -> list[Measurements]:
        """Return what is known of each prompt of a batch after it was answered."""
        self.saw_images |= bool(prepared.all_images)
        lengths = prepared.text["attention_mask"].sum(1).tolist()
        vision_ms = round(1e3 * vision / len(batch), 3) if prepared.all_images else None
        return [
            Measurements(
                input_tokens=int(length),
                input_fingerprint=one.prints.input,
                image_fingerprint=one.prints.image,
                visual_tokens=list(row.visual_tokens),
                visual_token_layers=list(row.layers),
                diagnostics={name: list(numbers) for name, numbers in row.diagnostics.items()} or None,
                vision_ms=vision_ms,
            )
            for one, row, length in zip(batch, tokens, lengths, strict=True)
        ]

    def _result(self, row: GeneratedRow, counts: Measurements, until: Sequence[str]) -> GenerationResult:
        text = self._tokenizer.decode(row.tokens, skip_special_tokens=True, **self._family.decode_arguments)
        return GenerationResult(text=self._family.clean(text, until), token_counts=row.noted_in(counts))
