"""What methods leave of one image, and what the model answers then: the data of a picture, no drawing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig

from lmms_eval_stability.model_wrappers.errors import CheckpointError, WrapperError
from lmms_eval_stability.model_wrappers.families import family_for
from lmms_eval_stability.model_wrappers.generation import GenerationSettings, generate
from lmms_eval_stability.model_wrappers.loading import LoadedModel, LoadOptions, load, resolve
from lmms_eval_stability.model_wrappers.registry import FAMILIES, METHODS, MODELS
from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.before_llm import BeforeLLM
from lmms_eval_stability.model_wrappers.token_reduction.canvas import Canvas, make_canvas
from lmms_eval_stability.model_wrappers.token_reduction.trace import RowTrace, StageTrace


@dataclass(frozen=True)
class Fates:
    """What became of each of an image's N visual tokens.

    Attributes:
        dropped_at: (N,) the stage, from 1, by which a token was dropped; 0 if it, or what it was merged into, is left.
        merged: (N,) bool, whether it went into a merged token that is left.
        stages: Stages that there are.
        merged_tokens: Merged tokens that are left.
        others: Tokens that are left and stand for no visual token (see ``StageTrace``).
    """

    dropped_at: NDArray[np.int64]
    merged: NDArray[np.bool_]
    stages: int
    merged_tokens: int
    others: int

    @classmethod
    def of(cls, trace: RowTrace) -> Fates:
        """Read the trace of a prompt."""
        total = len(trace[0].kept)
        dropped_at = np.zeros(total, dtype=np.int64)
        merged = np.zeros(total, dtype=np.bool_)
        gone = np.zeros(total, dtype=np.bool_)
        for number, stage in enumerate(trace):
            here = np.zeros(total, dtype=np.bool_)
            here[[*stage.kept, *(source for group in stage.merged for source in group)]] = True
            dropped_at[~here & ~gone] = number
            gone |= ~here
        merged[[source for group in trace[-1].merged for source in group]] = True
        return cls(dropped_at, merged, len(trace) - 1, len(trace[-1].merged), trace[-1].others)


@dataclass(frozen=True)
class Shown:
    """One method's picture and answer.

    Attributes:
        canvas: The image as the model sees it with the method.
        fates: Of the canvas's visual tokens.
        tokens: Visual tokens on their way through the model.
        answer: What the model says.
    """

    canvas: Canvas
    fates: Fates
    tokens: RowTokens
    answer: str


def load_any(pretrained: str) -> LoadedModel:
    """Load a checkpoint of any family that there is.

    Raises:
        CheckpointError: there is none by that name, or it cannot be read.
        WrongFamilyError: it is of an architecture that no family serves.
    """
    try:
        config = AutoConfig.from_pretrained(resolve(pretrained))
        model_type = family_for(config).model_type
        name = next(name for name, family in FAMILIES.items() if model_type in family.model_types)
        return load(MODELS[f"{name}_baseline"], LoadOptions(pretrained=pretrained))
    except WrapperError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"no checkpoint could be loaded from '{pretrained}': {reason}. Give a folder or the name of a checkpoint on"
            " the hub, or demo for the model that comes with the package"
        ) from error


def make_method(name: str, parameters: Mapping[str, Any]) -> TokenReducer:
    """Return a method of the registry with some of its parameters set.

    Raises:
        InvalidParameterError: a value is out of range.
    """
    module, class_name = METHODS[name].path.split(":")
    found = getattr(importlib.import_module(f"lmms_eval_stability.model_wrappers.{module}"), class_name)
    method: TokenReducer = found(**parameters)
    return method


def show(
    loaded: LoadedModel,
    image: Image.Image,
    question: str,
    methods: Sequence[TokenReducer],
    *,
    max_new_tokens: int,
) -> Iterator[Shown]:
    """Answer a question about an image, first as the model is, then with each method.

    Args:
        loaded: The model.
        image: The image.
        question: The text of the prompt, as it is.
        methods: What to attach, one after the other.
        max_new_tokens: Length of an answer.

    Raises:
        UnsupportedModelError, InvalidParameterError: a method cannot work on the model; before anything is answered.
    """
    model, family = loaded.model, loaded.family
    for method in methods:
        with method.attach(model, family):
            pass
    content = [{"type": "image", "url": image}, {"type": "text", "text": question}]
    prompt = family.build_prompt(loaded.processor, [{"role": "user", "content": content}], question)
    inputs = dict(family.encode(loaded.processor, [prompt]).to(loaded.device, model.dtype))
    settings = GenerationSettings(max_new_tokens=max_new_tokens)

    def answer() -> str:
        (row,) = generate(model, loaded.tokenizer, inputs, settings, use_cache=True)
        text = loaded.tokenizer.decode(row.tokens, skip_special_tokens=True, **family.decode_arguments)
        return family.clean(text, ()).strip()

    canvas = make_canvas(model, loaded.processor, family, inputs)
    everything = StageTrace(0, tuple(range(len(canvas.boxes))))
    yield Shown(canvas, Fates.of((everything,)), RowTokens((0,), (everything.tokens,)), answer())
    for method in methods:
        with method.attach(model, family) as session:
            session.tracing = True
            text = answer()
        (trace,), (tokens,) = session.traces, session.rows
        smaller = method.smaller_images(model, family, inputs) if isinstance(method, BeforeLLM) else None
        if smaller is None:
            yield Shown(canvas, Fates.of(trace), tokens, text)
        else:  # all tokens are those of another image
            left = StageTrace(0, tuple(range(trace[-1].tokens)))
            own = make_canvas(model, loaded.processor, family, {**inputs, **smaller})
            yield Shown(own, replace(Fates.of((left,)), stages=1), tokens, text)
