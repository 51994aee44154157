"""Load a model by name, answer documents with it, and compare its linear layers with those of another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.models import get_model
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tests.model_wrappers.documents import chat_requests, doc_to_messages, documents, give_documents

#: Linear layers in the decoder of every tiny model: 8 layers of 4 projections and 3 of the MLP.
DECODER_LINEARS = 56


def make(kind: str, method: str, folder: str | Path, **arguments: Any) -> Any:
    family = "llava" if kind.startswith("llava") else kind
    return get_model(f"{family}_{method}")(pretrained=str(folder), device="cpu", **arguments)


def answers(model: Any, count: int = 4, tokens: int = 6) -> list[str]:
    docs = documents(count)
    give_documents(model, docs)
    return [result.text for result in model.generate_until(chat_requests(docs, {"max_new_tokens": tokens}))]


def inputs_of(model: Any, count: int = 2) -> Any:
    """Return the inputs of a batch of documents with one image each."""
    docs = documents(count)
    prompts = [model.family.build_prompt(model.processor, doc_to_messages(doc), doc["question"]) for doc in docs]
    return model.family.encode(model.processor, prompts).to("cpu", model.model.dtype)


@torch.no_grad()
def logits(model: Any, count: int = 2) -> Tensor:
    """(prompt tokens of the batch, vocabulary)"""
    inputs = inputs_of(model, count)
    scores: Tensor = model.model(**inputs).logits.float()
    return scores[inputs["attention_mask"].bool()]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@torch.no_grad()
def worst_layer(model: Any, reference: Callable[[str, nn.Module], Callable[[Tensor], Tensor]]) -> float:
    """Return the largest relative error of any decoder linear layer, on the inputs that it has in a real prompt.

    Args:
        model: a model of the package.
        reference: from a layer's name and the layer to a function of its input.
    """
    errors: list[float] = []

    def watch(layer: nn.Module, expected: Callable[[Tensor], Tensor]) -> RemovableHandle:
        compare = lambda _, inputs, output: errors.append(relative_error(output, expected(inputs[0])))  # noqa: E731
        return layer.register_forward_hook(compare)

    # References first: kernels repack weights in their first forward pass.
    layers = {name: model.model.get_submodule(name) for name in decoder_linears(model.model)}
    handles = [watch(layer, reference(name, layer)) for name, layer in layers.items()]
    model.model(**inputs_of(model))
    for handle in handles:
        handle.remove()
    assert len(errors) == DECODER_LINEARS
    return max(errors)


def decoder_linears(model: nn.Module) -> Sequence[str]:
    return [
        name
        for name, _ in model.named_modules()
        if name.startswith("model.language_model.layers.") and name.endswith("_proj")
    ]


def twin_of(model: Any) -> Callable[[str, nn.Module], Callable[[Tensor], Tensor]]:
    """Return a reference for ``worst_layer``: the same layer of a dense model."""
    return lambda name, _: model.model.get_submodule(name)
