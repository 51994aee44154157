"""``AcceleratedVLM``: the one class behind every model of this package, and the only place that talks to lmms-eval."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from lmms_eval_stability.model_wrappers.answering import Answerer, AnswerSettings
from lmms_eval_stability.model_wrappers.arguments import (
    check_arguments,
    make_methods,
    read_batch_size,
    read_reuse,
)
from lmms_eval_stability.model_wrappers.batch_size import answer_batch, is_out_of_memory
from lmms_eval_stability.model_wrappers.deterministic import be_deterministic
from lmms_eval_stability.model_wrappers.errors import (
    AnswerError,
    DoesNotFitError,
    InvalidArgumentError,
    UnsupportedInputError,
)
from lmms_eval_stability.model_wrappers.facts import run_facts
from lmms_eval_stability.model_wrappers.loading import LoadOptions, load
from lmms_eval_stability.model_wrappers.lru import MEBIBYTE
from lmms_eval_stability.model_wrappers.measurements import (
    ImageDigests,
    Measurements,
    fingerprints,
    log_throughput,
)
from lmms_eval_stability.model_wrappers.preparation import Ahead, Prepared, Preparer
from lmms_eval_stability.model_wrappers.reading import Read, batches, in_order, windows
from lmms_eval_stability.model_wrappers.registry import ModelEntry
from lmms_eval_stability.model_wrappers.repairs import repair_likelihood_tasks
from lmms_eval_stability.model_wrappers.requests import Candidate, Question, Request
from lmms_eval_stability.model_wrappers.scoring import Likelihood, failing_together
from lmms_eval_stability.model_wrappers.throughput import Stopwatch
from lmms_eval_stability.model_wrappers.token_reduction.base import Session


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
        batch_size: rows per forward pass, or ``auto``: by free memory on a GPU, 8 on a CPU. Rows that do not fit into
            memory are answered in smaller batches, and the smaller size is kept.
        max_batch_size: limit of an automatic batch size; default: 64.
        reuse: what questions about one image share: ``none``; ``vision``: its features, bit by bit those of batch size
            1; ``prefix``: also the keys and values of the prompt up to the image's end.
        reuse_memory: MiB of features, and of prefixes, that are kept for later questions.
        deterministic: one row at a time, nothing reused, deterministic kernels.
        use_cache: keep keys and values between generation steps.
        max_new_tokens: overrides the task's number.
        min_pixels, max_pixels: bounds of the image size (Qwen only).
        trust_remote_code: run code from the checkpoint.
        use_safetensors: refuse pickled weights.
        spectrum: log the inverse participation ratio of the visual tokens before and after a token reduction; default:
            True, but False for ``downsample``, which has to encode every image in both sizes for it.
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
        reuse: str = "vision",
        reuse_memory: int = 1024,
        deterministic: bool = False,
        use_cache: bool = True,
        max_new_tokens: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
        spectrum: bool | None = None,
        on_error: str = "raise",
        workers: int | None = None,
        quantization: str | None = None,
        quantize_vision: bool = False,
        **method_args: Any,
    ) -> None:
        super().__init__()
        flags = {"use_cache": use_cache, "trust_remote_code": trust_remote_code, "use_safetensors": use_safetensors}
        flags |= {"quantize_vision": quantize_vision, "deterministic": deterministic}
        flags |= {} if spectrum is None else {"spectrum": spectrum}
        check_arguments(self.entry, pretrained, on_error, max_new_tokens, flags, workers)
        if deterministic:
            be_deterministic(attn_implementation)
            batch_size, max_batch_size, reuse = 1, None, "none"
        self.rows = read_batch_size(batch_size, max_batch_size)
        read_reuse(reuse, reuse_memory, use_cache)
        self.reuse, self.deterministic = reuse, deterministic
        self.method, quantizer = make_methods(self.entry, quantization, method_args, takes=_argument_names())
        changes_pixels = self.method is not None and self.method.changes_pixels
        self._spectrum = not changes_pixels if spectrum is None else spectrum
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
        self._digest = ImageDigests()
        self._preparer = Preparer(self.family, self.processor, pin=self._device.type == "cuda")
        how = AnswerSettings(reuse, reuse_memory * MEBIBYTE, use_cache, max_new_tokens)
        self._answerer = Answerer(self._model, self.tokenizer, self.family, self._device, how)
        # Attach once now: parameters that the model cannot take are refused before any document is read.
        with self._accelerated():
            pass
        self._facts: dict[str, Any] = run_facts(self, options)
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
        """Rows per forward pass now; 0 while an automatic size is not chosen yet."""
        return self.rows.rows

    @property
    def batch_size_per_gpu(self) -> int:
        return self.rows.rows

    @batch_size_per_gpu.setter
    def batch_size_per_gpu(self, rows: int) -> None:
        self.rows.rows = rows

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

    @contextmanager
    def _accelerated(self) -> Iterator[Session | None]:
        if self.method is None:
            yield None
            return
        with self.method.attach(self._model, self.family) as session:
            session.spectrum = self._spectrum
            yield session

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
            results = self._run(questions, self._answerer.generate, self._unanswered)
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
            return failing_together(candidates, self._run(candidates, self._answerer.score, self._unscored))

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
        results: dict[int, Any] = {}
        vision, watch = self._answerer.vision, Stopwatch(self._device)
        seconds, encoded = vision.seconds, vision.encoded
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        with progress, self._accelerated() as session, self._answerer.ready(session):
            for batch, prepared in self._prepared(requests):

                def answer_some(some: Sequence[Any], batch: Any = batch, prepared: Any = prepared) -> list[Any]:
                    if len(some) == len(batch):
                        return answer(some, prepared(), session)
                    # After a failure what was made for the whole batch is of no use, and memory may be what is missing.
                    self._answerer.forget()
                    return answer(some, self._prepare(some), session)

                answers = answer_batch(batch, answer_some, failed, self.rows)
                results.update((one.request.index, result) for one, result in zip(batch, answers, strict=True))
                progress.update(len(batch))
            if session is not None:
                session.require_pruned(expect_images=self._answerer.saw_images)
        self._preparer.clear()
        done = [results[index] for index in range(len(requests))]
        images = vision.encoded - encoded if self.reuse != "none" else None
        throughput = watch.read([result.token_counts for result in done], vision.seconds - seconds, images)
        facts = {**self._facts, "batch_size_used": self.batch_size, "throughput": throughput.to_dict()}
        first = {request.task: request.index for request in reversed(requests)}
        for index in first.values():
            done[index].token_counts.run = facts
        return done

    def _prepared(self, requests: Sequence[Any]) -> Iterator[tuple[list[Read[Any]], Callable[[], Prepared]]]:
        """Yield batches, each with a function that returns its inputs."""
        with closing(windows(requests, self._read, self.workers)) as reading:
            for window in reading:
                self.rows.choose(self._model, self._device, max(one.length for one in window))
                with closing(Ahead(self._prepare, self.workers)(self._batches(window))) as ahead:
                    yield from ahead

    def _batches(self, window: Sequence[Read[Any]]) -> Iterator[list[Read[Any]]]:
        for group in in_order(window, by_image=self.reuse != "none", batched=self.batch_size > 1):
            yield from batches(group, lambda: self.batch_size)

    def _read(self, request: Any) -> Read[Any]:
        """Read one document; called from several threads."""
        document = self.task_dict[request.task][request.split][request.doc_id]
        messages = ChatMessages(messages=request.messages(document)).model_dump()["messages"]
        processor = self._preparer.processor()
        prompt = self.family.build_prompt(processor, messages, request.context)
        answer = request.text(document) if isinstance(request, Candidate) else ""
        shown = dataclasses.replace(prompt, text=prompt.text + answer)
        tokens = sum(self.family.rough_tokens(self._model, *image.size) for image in prompt.images)
        # Exact where batches are made: rows of equal length need no padding, and attention is faster without.
        alone = self.batch_size == 1
        text = len(shown.text) // 4 if alone else len(processor.tokenizer(shown.text)["input_ids"])
        return Read(request, prompt, fingerprints(shown, self._digest), answer, tokens, text)

    def _prepare(self, batch: Sequence[Read[Any]]) -> Prepared:
        """Return a batch's inputs; called from several threads."""
        for one in batch:
            if one.error is not None:
                raise one.error
        return self._preparer.prepare([one.prompt for one in batch], [one.prints.images for one in batch])

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Not offered: the tasks that need it are refused by name."""
        raise UnsupportedInputError(_unsupported(self.entry.name, "generate_until_multi_round", requests))

    def _reason(self, request: Request, error: Exception) -> str:
        """Return what to record of a document that cannot be answered, or raise."""
        reason = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            reason = f"it does not fit into the memory of {self._device} even alone ({reason})"
            if self.on_error == "raise":
                raise DoesNotFitError(
                    f"{self.entry.name}: {request.name} could not be answered: {reason}. Lower max_pixels (Qwen) or"
                    " reuse_memory, or spread the model with device_map=auto"
                ) from error
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


def _argument_names() -> list[str]:
    """Return what every model takes in ``--model_args``."""
    own = AcceleratedVLM.__init__.__code__
    return [name for name in own.co_varnames[1 : own.co_argcount] if name != "max_batch_size"]


def _unsupported(model: str, kind: str, requests: Sequence[Instance]) -> str:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    return f"{model} answers one question at a time; {tasks} sends {kind}. Choose a variant of the task with one round"
