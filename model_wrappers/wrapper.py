"""``AcceleratedVLM``: the one class behind every model of this package, and the only place that talks to lmms-eval."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from lmms_eval_stability.model_wrappers.arguments import check_arguments, make_method, read_batch_size
from lmms_eval_stability.model_wrappers.errors import AnswerError, InvalidArgumentError, UnsupportedInputError
from lmms_eval_stability.model_wrappers.facts import run_facts
from lmms_eval_stability.model_wrappers.families import Prompt
from lmms_eval_stability.model_wrappers.generation import GeneratedRow, GenerationSettings, fill_padding, generate
from lmms_eval_stability.model_wrappers.loading import LoadOptions, load
from lmms_eval_stability.model_wrappers.measurements import Measurements, fingerprint, log_throughput
from lmms_eval_stability.model_wrappers.registry import ModelEntry
from lmms_eval_stability.model_wrappers.requests import Document, batches
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session


class AcceleratedVLM(lmms):  # type: ignore[misc]
    """A vision-language model, as it is or accelerated, answering lmms-eval's requests.

    Prompts, defaults and (at batch size 1) answers of a ``_baseline`` equal those of lmms-eval's own model of the same
    architecture. Unlike those it answers left-padded batches, reads images without re-encoding them, and never turns an
    exception into an empty answer.

    Args:
        pretrained: hub name, folder, or ``demo`` for the model that comes with the package.
        revision: branch, tag or commit of a hub checkpoint.
        dtype: ``auto`` (as stored), ``float32``, ``float16`` or ``bfloat16``.
        device: default: cuda if there is one, else cpu.
        device_map: passed to transformers (``auto`` spreads one model over several devices); ``device`` is then unused.
        attn_implementation: ``sdpa`` (transformers' default), ``eager`` or ``flash_attention_2``.
        batch_size: rows per forward pass.
        use_cache: keep keys and values between generation steps.
        max_new_tokens: overrides the task's number.
        min_pixels, max_pixels: bounds of the image size (Qwen only).
        trust_remote_code: run code from the checkpoint.
        use_safetensors: refuse pickled weights.
        on_error: ``raise`` stops the run, naming the document; ``record`` logs the document as failed.
        method_args: parameters of the method, by name (``k=3,r=0.5``).

    Raises:
        UnknownArgumentError, InvalidArgumentError, WrongFamilyError, CheckpointError: see ``errors``.
    """

    is_simple = False
    entry: ClassVar[ModelEntry]

    def __init__(
        self,
        pretrained: str = "",
        revision: str = "main",
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        use_cache: bool = True,
        max_new_tokens: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
        on_error: str = "raise",
        **method_args: Any,
    ) -> None:
        super().__init__()
        flags = {"use_cache": use_cache, "trust_remote_code": trust_remote_code, "use_safetensors": use_safetensors}
        check_arguments(self.entry, pretrained, on_error, max_new_tokens, flags)
        self.batch_size_per_gpu = read_batch_size(batch_size, max_batch_size)
        self.method = make_method(self.entry, method_args, takes=_argument_names())
        self.on_error, self.use_cache, self.max_new_tokens = on_error, use_cache, max_new_tokens
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device_map and self._world_size > 1:
            raise InvalidArgumentError(
                f"device_map={device_map} spreads one model over the devices, but {self._world_size} processes run;"
                " start one process, or leave device_map out: each process then has a model and a GPU of its own"
            )
        pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        options = LoadOptions(
            pretrained=pretrained,
            revision=revision,
            dtype=str(dtype).removeprefix("torch."),
            device=self._own_device(device),
            device_map=device_map or None,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
            processor={name: value for name, value in pixels.items() if value is not None},
        )
        loaded = load(self.entry, options)
        self._model, self.processor, self.family = loaded.model, loaded.processor, loaded.family
        self.tokenizer, self._device = loaded.tokenizer, loaded.device
        # Attach once now: parameters that the model cannot take are refused before any document is read.
        with self._accelerated():
            pass
        self._facts: dict[str, Any] = run_facts(self, options)
        self._tasks_with_facts: set[str] = set()
        self._saw_images = False

    def _own_device(self, device: str | None) -> str | None:
        """Return this process's device: under a launcher with several processes each has its own GPU."""
        if self._world_size == 1 or not torch.cuda.is_available() or device == "cpu":
            return device
        return f"cuda:{self.accelerator.local_process_index}"

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> AcceleratedVLM:
        """As lmms-eval's, except that ``batch_size`` and ``device`` may stand in ``--model_args`` too and win there."""
        from lmms_eval.utils import simple_parse_args_string

        given = simple_parse_args_string(arg_string)
        launcher = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**launcher, **given})

    @property
    def batch_size(self) -> int:
        return self.batch_size_per_gpu

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model

    @property
    def config(self) -> Any:
        return self._model.config

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _accelerated(self) -> AbstractContextManager[Session | None]:
        return self.method.attach(self._model, self.family) if self.method else nullcontext()

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request; the results are in the order of the requests.

        Under a launcher with several processes an error ends this process at once instead of being raised: lmms-eval
        would catch it and the other processes would wait for this one, for hours; so the launcher stops them.

        Raises:
            AnswerError: a document could not be answered (unless ``on_error=record``).
            NothingPrunedError: the method should have dropped visual tokens and dropped none.
        """
        try:
            return self._generate_until(requests)
        except Exception:
            if self.world_size == 1:
                raise
            logger.exception(f"rank {self.rank} of {self.world_size} failed; ending it so that the others do not wait")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        documents = [Document(index, *request.args) for index, request in enumerate(requests)]
        self._tasks_with_facts.clear()
        self._saw_images = False
        results: dict[int, GenerationResult] = {}
        progress = tqdm(total=len(documents), disable=self.rank != 0, desc="Model Responding")
        with progress, self._accelerated() as session:
            for batch in batches(documents, self.batch_size):
                for document, result in zip(batch, self._answer(batch, session), strict=True):
                    results[document.index] = result
                progress.update(len(batch))
            if session is not None:
                session.require_pruned(expect_images=self._saw_images)
        ordered = [results[index] for index in range(len(documents))]
        log_throughput([result.token_counts for result in ordered])
        return ordered

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the tasks that need it are refused by name."""
        raise UnsupportedInputError(_unsupported(self.entry.name, "loglikelihood", requests))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Not offered: the tasks that need it are refused by name."""
        raise UnsupportedInputError(_unsupported(self.entry.name, "generate_until_multi_round", requests))

    def _answer(self, batch: Sequence[Document], session: Session | None) -> list[GenerationResult]:
        """Answer one batch; on failure find the document that cannot be answered."""
        try:
            return self._answer_together(batch, session)
        except Exception as error:
            if len(batch) == 1:
                return [self._failed(batch[0], error)]
            reason = f"{type(error).__name__}: {error}"
        # Outside the handler, whose traceback holds on to the failed batch's tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(f"a batch of {len(batch)} documents failed ({reason}); answering them one by one")
        alone = [self._answer([document], session)[0] for document in batch]
        if any(result.token_counts.error for result in alone):
            return alone
        raise AnswerError(
            f"{self.entry.name}: a batch of {len(batch)} documents ({batch[0].name} and others) failed, though each"
            f" can be answered alone: {reason}. Lower --batch_size"
        )

    def _failed(self, document: Document, error: Exception) -> GenerationResult:
        reason = f"{type(error).__name__}: {error}"
        if self.on_error == "raise":
            raise AnswerError(
                f"{self.entry.name}: {document.name} could not be answered: {reason}."
                " --model_args on_error=record goes on and logs such documents as failed"
            ) from error
        logger.error(f"{document.name} failed: {reason}")
        counts = Measurements(error=reason, run=self._facts_once(document.task))
        return GenerationResult(text="", token_counts=counts)

    def _answer_together(self, batch: Sequence[Document], session: Session | None) -> list[GenerationResult]:
        settings = GenerationSettings.from_task(batch[0].gen_kwargs, self.family.default_max_new_tokens)
        if self.max_new_tokens is not None:
            settings = dataclasses.replace(settings, max_new_tokens=self.max_new_tokens)
        prompts = [self._prompt(document) for document in batch]
        self._saw_images |= any(prompt.images for prompt in prompts)
        inputs = self.family.encode(self.processor, prompts).to(self._device, self._model.dtype)
        inputs["input_ids"] = fill_padding(inputs["input_ids"], inputs["attention_mask"])
        rows = generate(self._model, self.tokenizer, inputs, settings, use_cache=self.use_cache)
        tokens = self._visual_tokens(inputs["input_ids"], session)
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [
            self._result(*parts, until=settings.until)
            for parts in zip(batch, prompts, rows, tokens, lengths, strict=True)
        ]

    def _prompt(self, document: Document) -> Prompt:
        doc = self.task_dict[document.task][document.split][document.doc_id]
        messages = ChatMessages(messages=document.doc_to_messages(doc)).model_dump()["messages"]
        return self.family.build_prompt(self.processor, messages, document.context)

    def _visual_tokens(self, input_ids: torch.Tensor, session: Session | None) -> Sequence[RowTokens]:
        if session is not None:
            return session.rows
        placeholders = torch.tensor(self.family.placeholder_ids(self._model.config), device=input_ids.device)
        return [RowTokens((0,), (int(n),)) for n in torch.isin(input_ids, placeholders).sum(1)]

    def _result(
        self,
        document: Document,
        prompt: Prompt,
        row: GeneratedRow,
        tokens: RowTokens,
        length: int,
        *,
        until: Sequence[str],
    ) -> GenerationResult:
        text = self.tokenizer.decode(row.tokens, skip_special_tokens=True, **self.family.decode_arguments)
        counts = Measurements(
            input_tokens=int(length),
            output_tokens=len(row.tokens),
            input_fingerprint=fingerprint(prompt),
            visual_tokens=list(tokens.visual_tokens),
            visual_token_layers=list(tokens.layers),
            prefill_ms=round(row.prefill_ms, 3),
            decode_ms=None if row.decode_ms is None else round(row.decode_ms, 3),
            first_token_logprobs=row.first_token_logprobs,
            answer_logprob=row.answer_logprob,
            run=self._facts_once(document.task),
        )
        return GenerationResult(text=self.family.clean(text, until), token_counts=counts)

    def _facts_once(self, task: str) -> dict[str, Any] | None:
        """Return the run's facts for the first answer of a task, then nothing: once per task and rank is enough."""
        if task in self._tasks_with_facts:
            return None
        self._tasks_with_facts.add(task)
        return self._facts


def _argument_names() -> list[str]:
    """Return what every model takes in ``--model_args``."""
    own = AcceleratedVLM.__init__.__code__
    return [name for name in own.co_varnames[1 : own.co_argcount] if name != "max_batch_size"]


def _unsupported(model: str, kind: str, requests: Sequence[Instance]) -> str:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    return (
        f"{model} answers generate_until requests only; {tasks} sends {kind}. Choose a generative variant of the task"
    )
