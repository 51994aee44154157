"""``AcceleratedVLM``: the one class behind every model of this package, and the only place that talks to lmms-eval."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from lmms_eval_stability.model_wrappers.arguments import check_arguments, make_methods, read_batch_size
from lmms_eval_stability.model_wrappers.errors import AnswerError, InvalidArgumentError, UnsupportedInputError
from lmms_eval_stability.model_wrappers.facts import run_facts
from lmms_eval_stability.model_wrappers.families import Prompt
from lmms_eval_stability.model_wrappers.generation import GeneratedRow, GenerationSettings, fill_padding, generate
from lmms_eval_stability.model_wrappers.loading import LoadOptions, load
from lmms_eval_stability.model_wrappers.measurements import Measurements, fingerprints, log_throughput
from lmms_eval_stability.model_wrappers.preparation import Ahead, OwnCopy, Prepared
from lmms_eval_stability.model_wrappers.registry import ModelEntry
from lmms_eval_stability.model_wrappers.repairs import repair_likelihood_tasks
from lmms_eval_stability.model_wrappers.requests import (
    Candidate,
    Question,
    Request,
    answer_batch,
    batches,
)
from lmms_eval_stability.model_wrappers.scoring import (
    Likelihood,
    answer_ids,
    append_answers,
    failing_together,
    score,
)
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
        workers: threads that read, perturb and process the images of the next batches while the model computes;
            default: 2 with a GPU, else 0. Answers do not depend on it.
        quantization: ``int8``, ``nf4``, ``gptq`` or ``awq``, beside a token reduction (``llava_int8`` says it by name).
        quantize_vision: quantise vision tower and projector too; the output layer always stays in 16 bit.
        method_args: parameters of the method and of the quantisation, by name (``k=3,r=0.5,threshold=6.0``).

    Raises:
        UnknownArgumentError, InvalidArgumentError, WrongFamilyError, CheckpointError: see ``errors``.
        QuantizationError: see ``quantization.errors``.
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
        workers: int | None = None,
        quantization: str | None = None,
        quantize_vision: bool = False,
        **method_args: Any,
    ) -> None:
        super().__init__()
        flags = {"use_cache": use_cache, "trust_remote_code": trust_remote_code, "use_safetensors": use_safetensors}
        flags["quantize_vision"] = quantize_vision
        check_arguments(self.entry, pretrained, on_error, max_new_tokens, flags, workers)
        self.batch_size_per_gpu = read_batch_size(batch_size, max_batch_size)
        self.method, quantizer = make_methods(self.entry, quantization, method_args, takes=_argument_names())
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
            quantizer=quantizer,
            quantize_vision=quantize_vision,
        )
        loaded = load(self.entry, options)
        self._model, self.processor, self.family = loaded.model, loaded.processor, loaded.family
        self.tokenizer, self._device = loaded.tokenizer, loaded.device
        self.quantization = loaded.quantization
        self.workers = (2 if self._device.type == "cuda" else 0) if workers is None else workers
        self._processors = OwnCopy(self.processor)
        # Attach once now: parameters that the model cannot take are refused before any document is read.
        with self._accelerated():
            pass
        self._facts: dict[str, Any] = run_facts(self, options)
        self._saw_images = False
        repair_likelihood_tasks()

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
        with self._ending_the_launch():
            questions = [Question.read(index, request) for index, request in enumerate(requests)]
            results = self._run(questions, self._generate, self._unanswered)
            log_throughput([result.token_counts for result in results])
            return results

    def loglikelihood(self, requests: list[Instance]) -> list[Likelihood]:
        """Score the answer of every request; the results are in the order of the requests.

        Each result is a pair (loss, is_greedy). As in lmms-eval's own models the loss is the mean over the answer's
        tokens of their negative natural log-probability, and its multiple-choice tasks take the choice with the least
        of them; ``is_greedy`` says whether greedy decoding would give these tokens. Errors: as ``generate_until``.

        Raises:
            UnsupportedInputError: a request without a document (lmms-eval's chat tasks send none).
        """
        with self._ending_the_launch():
            candidates = [Candidate.read(index, request) for index, request in enumerate(requests)]
            return failing_together(candidates, self._run(candidates, self._score, self._unscored))

    @contextmanager
    def _ending_the_launch(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            if self.world_size == 1:
                raise
            logger.exception(f"rank {self.rank} of {self.world_size} failed; ending it so that the others do not wait")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _run(self, requests: Sequence[Any], answer: Callable[..., list[Any]], failed: Callable[..., Any]) -> list[Any]:
        """Answer all requests in batches; the first result of each task carries the facts of the run."""
        self._saw_images = False
        results: dict[int, Any] = {}
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        with progress, self._accelerated() as session:
            ahead = Ahead(self._prepare, self.workers)
            for batch, prepared in ahead(batches(requests, self.batch_size)):

                def answer_some(some: Sequence[Any], batch: Any = batch, prepared: Any = prepared) -> list[Any]:
                    # one by one after a failure, when what was made for the whole batch is of no use
                    return answer(some, prepared() if len(some) == len(batch) else self._prepare(some), session)

                answers = answer_batch(batch, answer_some, failed)
                results.update((request.index, result) for request, result in zip(batch, answers, strict=True))
                progress.update(len(batch))
            if session is not None:
                session.require_pruned(expect_images=self._saw_images)
        first = {request.task: request.index for request in reversed(requests)}
        for index in first.values():
            results[index].token_counts.run = self._facts
        return [results[index] for index in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Not offered: the tasks that need it are refused by name."""
        raise UnsupportedInputError(_unsupported(self.entry.name, "generate_until_multi_round", requests))

    def _reason(self, request: Request, error: Exception) -> str:
        """Return what to record of a document that cannot be answered, or raise."""
        reason = f"{type(error).__name__}: {error}"
        if self.on_error == "raise":
            raise AnswerError(
                f"{self.entry.name}: {request.name} could not be answered: {reason}."
                " --model_args on_error=record goes on and logs such documents as failed"
            ) from error
        logger.error(f"{request.name} failed: {reason}")
        return reason

    def _unanswered(self, question: Question, error: Exception) -> GenerationResult:
        return GenerationResult(text="", token_counts=Measurements(error=self._reason(question, error)))

    def _unscored(self, candidate: Candidate, error: Exception) -> Likelihood:
        return Likelihood(math.inf, False, Measurements(error=self._reason(candidate, error)))

    def _prepare(self, batch: Sequence[Request]) -> Prepared:
        """Return a batch's inputs; called from several threads."""
        processor = self._processors.get()
        documents = [self.task_dict[request.task][request.split][request.doc_id] for request in batch]
        prompts = []
        for request, document in zip(batch, documents, strict=True):
            messages = ChatMessages(messages=request.messages(document)).model_dump()["messages"]
            prompts.append(self.family.build_prompt(processor, messages, request.context))
        return Prepared(documents, prompts, self.family.encode(processor, prompts))

    def _generate(
        self, batch: Sequence[Question], prepared: Prepared, session: Session | None
    ) -> list[GenerationResult]:
        settings = GenerationSettings.from_task(batch[0].gen_kwargs, self.family.default_max_new_tokens)
        if self.max_new_tokens is not None:
            settings = dataclasses.replace(settings, max_new_tokens=self.max_new_tokens)
        inputs = self._inputs(prepared)
        inputs["input_ids"] = fill_padding(inputs["input_ids"], inputs["attention_mask"])
        rows = generate(self._model, self.tokenizer, inputs, settings, use_cache=self.use_cache)
        counts = self._measured(prepared.prompts, inputs, session)
        return [self._result(row, count, settings.until) for row, count in zip(rows, counts, strict=True)]

    def _score(self, batch: Sequence[Candidate], prepared: Prepared, session: Session | None) -> list[Likelihood]:
        prompts = prepared.prompts
        texts = [candidate.text(document) for candidate, document in zip(batch, prepared.documents, strict=True)]
        placeholders = self.family.placeholder_ids(self._model.config)
        answers = [
            answer_ids(self.tokenizer, prompt.text, text, placeholders)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        inputs = self._inputs(prepared)
        whole = append_answers(inputs, answers, self.tokenizer.pad_token_id)
        rows = score(self._model, self.tokenizer, whole, [len(answer) for answer in answers], session)
        shown = [dataclasses.replace(p, text=p.text + text) for p, text in zip(prompts, texts, strict=True)]
        counts = self._measured(shown, inputs, session)
        return [Likelihood(row.loss, row.is_greedy, row.noted_in(n)) for row, n in zip(rows, counts, strict=True)]

    def _inputs(self, prepared: Prepared) -> Any:
        self._saw_images |= any(prompt.images for prompt in prepared.prompts)
        return prepared.inputs.to(self._device, self._model.dtype)

    def _measured(self, shown: Sequence[Prompt], inputs: Any, session: Session | None) -> list[Measurements]:
        """Return what is known of each prompt of a batch after it was answered."""
        tokens = self._visual_tokens(inputs["input_ids"], session)
        lengths = inputs["attention_mask"].sum(1).tolist()
        digests = [fingerprints(prompt) for prompt in shown]
        return [
            Measurements(
                input_tokens=int(length),
                input_fingerprint=digest.input,
                image_fingerprint=digest.image,
                visual_tokens=list(row.visual_tokens),
                visual_token_layers=list(row.layers),
                diagnostics={name: list(numbers) for name, numbers in row.diagnostics.items()} or None,
            )
            for digest, row, length in zip(digests, tokens, lengths, strict=True)
        ]

    def _visual_tokens(self, input_ids: torch.Tensor, session: Session | None) -> Sequence[RowTokens]:
        if session is not None:
            return session.rows
        placeholders = torch.tensor(self.family.placeholder_ids(self._model.config), device=input_ids.device)
        return [RowTokens((0,), (int(n),)) for n in torch.isin(input_ids, placeholders).sum(1)]

    def _result(self, row: GeneratedRow, counts: Measurements, until: Sequence[str]) -> GenerationResult:
        text = self.tokenizer.decode(row.tokens, skip_special_tokens=True, **self.family.decode_arguments)
        return GenerationResult(text=self.family.clean(text, until), token_counts=row.noted_in(counts))


def _argument_names() -> list[str]:
    """Return what every model takes in ``--model_args``."""
    own = AcceleratedVLM.__init__.__code__
    return [name for name in own.co_varnames[1 : own.co_argcount] if name != "max_batch_size"]


def _unsupported(model: str, kind: str, requests: Sequence[Instance]) -> str:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    return f"{model} answers one question at a time; {tasks} sends {kind}. Choose a variant of the task with one round"
