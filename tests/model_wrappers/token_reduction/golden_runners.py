"""What each kind of golden vector of the token-reduction methods demands of our functions.

A file's prefix names its method and its keys the kind of case. Shapes and parameters are read from the file, and every
output that it holds is compared: indices exactly, floats within 1e-5. Keys are described in the README beside the
vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from lmms_eval_stability.model_wrappers.families import LlavaNext
from lmms_eval_stability.model_wrappers.token_reduction import sparsevlm, visionzip
from lmms_eval_stability.model_wrappers.token_reduction.attention_tap import AttentionTap, attention_rows
from lmms_eval_stability.model_wrappers.token_reduction.fastv import FastV
from lmms_eval_stability.model_wrappers.token_reduction.hired import HiRED
from lmms_eval_stability.model_wrappers.token_reduction.pyramiddrop import PyramidDrop
from lmms_eval_stability.model_wrappers.token_reduction.sequence import Kept, take
from lmms_eval_stability.model_wrappers.token_reduction.vision import ImageView


class Case:
    """One file of vectors: inputs and parameters to read, outputs to compare with."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with np.load(path) as arrays:
            self._arrays = dict(arrays.items())

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def raw(self, key: str) -> np.ndarray[Any, Any]:
        """Return an array as it is stored."""
        if key not in self._arrays:
            raise AssertionError(f"{self.name}: has no {key!r}, only {', '.join(self._arrays)}")
        return self._arrays[key]

    def tensor(self, key: str) -> Tensor:
        """Return an array as a tensor; floats of whatever precision as float32, which the methods compute in."""
        tensor = torch.from_numpy(self.raw(key))
        return tensor.float() if tensor.is_floating_point() else tensor

    def number(self, key: str, default: float | None = None) -> Any:
        """Return a parameter as a Python number."""
        return default if key not in self and default is not None else self.raw(key).item()

    def numbers(self, key: str) -> list[Any]:
        """Return a list of parameters as Python numbers."""
        return list(self.raw(key).reshape(-1).tolist())

    def same(self, key: str, ours: Any, *, required: bool = True) -> None:
        """Demand equality of indices, counts or masks, whatever the number of leading axes of length one."""
        if key not in self and not required:
            return
        theirs, ours = self.raw(key), np.asarray(ours)
        if theirs.dtype == bool:
            ours = ours.astype(bool)
        assert theirs.size == ours.size, f"{self.name}: {key} has {theirs.size} elements, ours {ours.size}"
        np.testing.assert_array_equal(ours.reshape(theirs.shape), theirs, err_msg=f"{self.name}: {key}")

    def close(self, key: str, ours: Tensor, *, required: bool = False) -> None:
        """Demand equality of floats within 1e-5."""
        if key not in self and not required:
            return
        theirs = self.raw(key)
        assert theirs.size == ours.numel(), f"{self.name}: {key} has {theirs.size} elements, ours {ours.numel()}"
        ours_array = ours.detach().numpy().reshape(theirs.shape)
        np.testing.assert_allclose(ours_array, theirs, atol=1e-5, rtol=1e-6, err_msg=f"{self.name}: {key}")


def run_fastv(case: Case) -> None:
    """Rank by one row of attention, keep, and gather the hidden states and positions."""
    start, length = case.number("image_start"), case.number("image_length")
    attention = case.tensor("attn_last_row")  # (B, H, L)
    batch, _, total = attention.shape
    method = FastV(r=case.number("r"))
    keep = method.keep_count(0, length, length)
    case.same("num_keep", keep, required=False)
    dropped = torch.zeros(batch, total, dtype=torch.bool)
    dropped[:, start : start + length] = True
    for row in range(batch):
        stays = method.select(method.score(attention[row, :, None, start : start + length]), keep)
        dropped[row, start + stays] = False
    kept, slots = Kept.everything(batch, total, None, dropped.device).without(dropped)
    case.same("keep_indices", kept.columns)
    case.same("position_ids", kept.columns, required=False)
    if "hidden_states" in case:
        case.close("hidden_out", take(case.tensor("hidden_states"), slots))


def run_pyramiddrop(case: Case) -> None:
    """Drop in stages, with attention computed by transformers' own kernels."""
    for kernel in ("sdpa", "eager"):
        hidden = case.tensor("hidden_in_stage0")
        start, entered = case.number("sys_len"), case.number("image_tokens")
        method, now = PyramidDrop(case.numbers("layer_list"), case.numbers("ratio_list")), entered
        for stage in range(len(case.numbers("ratio_list"))):
            rows = _pyramiddrop_attention(case, stage, hidden, kernel)
            dropped = torch.zeros(hidden.shape[:2], dtype=torch.bool)
            dropped[:, start : start + now] = True
            for row, attention in enumerate(rows[..., start : start + now]):
                left = method.reduce(stage, entered, attention, hidden[row, start : start + now])
                dropped[row, start + left.stays] = False
            everything = Kept.everything(len(hidden), hidden.shape[1], None, hidden.device)
            kept, slots = everything.without(dropped)
            case.same(f"kept_rows_stage{stage}", slots)
            case.same(f"position_ids_out_stage{stage}", kept.renumbered(everything), required=False)
            hidden, now = take(hidden, slots), method.keep_count(stage, entered, now)
            case.close(f"hidden_out_stage{stage}", hidden)
            hidden = torch.tanh(hidden) + 0.5 * hidden  # in the vectors: what the layers in between do


def _pyramiddrop_attention(case: Case, stage: int, hidden: Tensor, kernel: str) -> Tensor:
    """Return the last row of attention (B, H, 1, L) under the stage's projections, at positions 0, 1, 2, ..."""
    query, key = case.tensor(f"q_proj_{stage}"), case.tensor(f"k_proj_{stage}")
    heads, batch, length = case.number("num_heads"), *hidden.shape[:2]
    head_dim = case.number("head_dim", len(query) // heads)
    config = LlamaConfig(
        hidden_size=hidden.shape[-1],
        num_attention_heads=heads,
        num_key_value_heads=len(key) // head_dim,
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": case.number("rope_theta", 10000.0)},
        attn_implementation=kernel,
    )
    attention = LlamaAttention(config, 0)
    with torch.no_grad():
        attention.q_proj.weight.copy_(query)
        attention.k_proj.weight.copy_(key)
    rotary = LlamaRotaryEmbedding(config)(hidden, torch.arange(length)[None])
    rows, seen = torch.full((batch, 1), length - 1), torch.ones(batch, 1, length, dtype=torch.bool)
    with ExitStack() as stack, torch.no_grad():
        return AttentionTap(attention, stack).measure(hidden, rotary, rows, seen)


def run_sparsevlm(case: Case) -> None:
    """Choose the raters, then drop and merge in stages."""
    start, now, length = (case.number(key) for key in ("v_token_start", "image_tokens", "text_len"))
    tokens = case.numbers("token_list")
    method = sparsevlm.SparseVLM(layers=case.numbers("layer_list"), tokens=tokens, literal=True)
    embeds = case.tensor("embeds")[0]
    visual, text = embeds[start : start + now], embeds[start + now : start + now + length]
    case.close("rater_scores", sparsevlm.rater_scores(visual, text))
    raters = method.raters(visual, text)
    case.same("rater_idx_rel_text", raters)
    for stage in range(len(tokens)):
        case.same(f"rater_rows_abs_{stage}", start + now + raters, required=False)
        hidden, now = _sparsevlm_stage(case, method, stage, start, now)
        case.same(f"v_token_num_{stage}", now, required=False)
        case.close(f"hidden_next_{stage}", hidden, required=True)


def _sparsevlm_stage(case: Case, method: sparsevlm.SparseVLM, stage: int, start: int, now: int) -> tuple[Tensor, int]:
    """Check one stage; return the hidden states after it (1, L, d) and the number of visual tokens among them."""
    hidden = case.tensor(f"layer_out_{stage}").clone()
    attention = case.tensor(f"attn_rater_rows_{stage}")[0, ..., start : start + now]
    scores = method.score(attention)
    case.close(f"relation_{stage}", scores)
    left = method.reduce(stage, case.number("image_tokens"), attention, hidden[0, start : start + now])
    assert left.merged is not None
    assert left.places is not None
    mask = torch.zeros(now, dtype=torch.bool)
    mask[left.stays] = True
    case.same(f"mask_{stage}", mask)
    recycled = method.recycle(scores, left.stays)
    case.same(f"recycled_idx_rel_pruned_{stage}", (~mask).cumsum(0)[recycled] - 1, required=False)
    case.close(f"recycled_tokens_{stage}", hidden[0, start + recycled])
    case.same(f"cluster_num_{stage}", sparsevlm.cluster_count(len(recycled)), required=False)
    case.close(f"merged_tokens_{stage}", left.merged)

    everything = Kept.everything(1, hidden.shape[1], None, hidden.device)
    dropped, order = torch.zeros(1, hidden.shape[1], dtype=torch.bool), everything.slot_order()
    dropped[0, start : start + now] = True
    for index in (left.stays, left.places):
        dropped[0, start + index] = False
    order[0, start + left.places] = order[0, start + now - 1] + 1 + torch.arange(len(left.places))
    hidden[0, start + left.places] = left.merged
    kept, slots = everything.without(dropped, order)
    case.same(f"position_ids_{stage}", kept.renumbered(everything), required=False)
    return take(hidden, slots), len(left.stays) + len(left.places)


def run_sparsevlm_cluster(case: Case) -> None:
    """Merge tokens around density peaks, alone."""
    merged = [sparsevlm.merge(tokens, case.number("cluster_num"))[0] for tokens in case.tensor("tokens")]
    case.close("merged", torch.stack(merged), required=True)


def run_sparsevlm_rank(case: Case) -> None:
    """Keep as many tokens as the rank rule of version 1.0 says."""
    start, now = case.number("v_token_start"), case.number("image_tokens")
    attention = case.tensor("attn_rater_rows")[0, ..., start : start + now]
    scale, bias = case.number("scale"), case.number("bias", 0.0)
    method = sparsevlm.SparseVLM(rank_rule=True, scale=scale)
    scores = method.score(attention)
    case.close("relation", scores)
    case.same("rank", torch.linalg.matrix_rank(attention.mean(dim=0)), required=False)
    mask = torch.zeros(now, dtype=torch.bool)
    mask[method.select(scores, sparsevlm.rank_count(attention, scale, bias))] = True
    case.same("mask", mask)
    if bias == 0:  # our method has no such parameter: the official code's is 0
        stays = method.reduce(0, now, attention, torch.randn(now, 8, generator=torch.Generator().manual_seed(0))).stays
        assert stays.tolist() == mask.nonzero().squeeze(1).tolist()


def run_visionzip(case: Case) -> None:
    """Keep the dominant tokens of each image and merge the others."""
    dominant, contextual = case.number("dominant_num") + 1, case.number("contextual_num")  # the file counts no CLS
    method = visionzip.VisionZip(dominant=dominant, contextual=contextual, literal=True)
    kept, tokens = [], []
    attention, hidden, keys = (case.tensor(key) for key in ("cls_attention_row", "hidden_states", "metric"))
    for image in zip(attention, hidden, keys, strict=True):
        indices, features, merged = method.zip_partition(*image, dominant, contextual)
        kept.append(indices.tolist())
        tokens.append(torch.cat([features, merged]))
    case.same("kept_indices_sorted", kept)
    if "kept_indices_unsorted" in case:
        assert np.sort(case.raw("kept_indices_unsorted"), axis=-1).tolist() == kept
    case.close("output_tokens", torch.stack(tokens), required=True)


def run_hired_image(case: Case) -> None:
    """Keep a share of one image's patches (LLaVA-1.5)."""
    method = HiRED(budget=case.number("token_budget_rate"), official_quirks=True)
    scores = case.tensor("layer22_cls_attn")[0].sum(dim=0)
    n = method.keep_count(len(scores))
    mask = method.select(scores, n)
    case.same("mask", mask)
    case.same("kept", n, required=False)
    case.same("kept_indices", mask.nonzero().squeeze(1), required=False)


def run_hired_tiles(case: Case) -> None:
    """Share out the budget among the tiles of each image, and pack what is kept (LLaVA-NeXT).

    Images whose tiles form no square are not packed: the official code transposes their grid.
    """
    method = HiRED(budget=case.number("token_budget_rate"), alpha=case.number("alpha", 0.5), official_quirks=True)
    for layer in (0, 22):
        if f"layer{layer}_q_cls" in case:
            case.close(f"layer{layer}_cls_attn", _hired_attention(case, layer), required=True)
    grids, partitions = case.raw("grids_official_order").tolist(), case.numbers("num_partitions")
    parts = [slice(end - count, end) for count, end in zip(partitions, np.cumsum(partitions), strict=True)]
    masks = []
    for grid, part in zip(grids, parts, strict=True):
        first, last = (case.tensor(f"layer{layer}_cls_attn")[part].sum(dim=1) for layer in (0, 22))
        masks.append(method.select_tiles(first[0], last, tuple(grid)))
    case.same("masks", torch.cat(masks))
    case.same("kept_per_partition", torch.cat(masks).sum(dim=1), required=False)
    if "packed_features" not in case:
        return
    theirs = case.tensor("packed_features").split(case.numbers("feature_lens"))
    for grid, part, size, packed in zip(grids, parts, case.raw("image_sizes_hw").tolist(), theirs, strict=True):
        if grid[0] == grid[1]:
            torch.testing.assert_close(_hired_packed(method, case, part, size), packed, atol=1e-5, rtol=0)


def _hired_attention(case: Case, layer: int) -> Tensor:
    """Return the CLS token's attention on the patches (P, H, n)."""
    query, key = (
        case.tensor(f"layer{layer}_{part}").unflatten(-1, (case.number("num_heads"), -1)).transpose(1, 2)
        for part in ("q_cls", "k")
    )
    rows, seen = torch.zeros(len(key), 1, dtype=torch.long), torch.ones(len(key), 1, key.shape[2], dtype=torch.bool)
    return attention_rows(query, key, rows, seen, key.shape[3] ** -0.5)[:, :, 0, 1:]


def _hired_packed(method: HiRED, case: Case, part: slice, size: list[int]) -> Tensor:
    """Compress an image of random features as the language model would get it."""
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=336,
        patch_size=case.number("patch_size"),
    )
    text = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(vision_config=vision, text_config=text, image_token_id=1))
    layout = LlavaNext().layout(model, size)
    features = case.tensor("features")[part].flatten(0, 1)
    tokens = torch.cat([features, features.new_full((1, features.shape[1]), 9.0)])[layout.source]  # -1: a newline
    none = torch.zeros_like(case.tensor("layer0_cls_attn")[part][..., :1])
    attention = {layer: torch.cat([none, case.tensor(f"layer{layer}_cls_attn")[part]], dim=2) for layer in (0, 22)}
    made = method.compress(ImageView(layout, tokens, tokens, attention))
    assert made is not None
    return made.features


#: Prefix of the file -> a key that only this kind of case has -> what to run.
RUNNERS: dict[str, dict[str, Callable[[Case], None]]] = {
    "fastv_": {"attn_last_row": run_fastv},
    "pyramiddrop_": {"hidden_in_stage0": run_pyramiddrop},
    "sparsevlm_": {
        "embeds": run_sparsevlm,
        "cluster_num": run_sparsevlm_cluster,
        "attn_rater_rows": run_sparsevlm_rank,
    },
    "visionzip_": {"cls_attention_row": run_visionzip},
    "hired_": {"num_partitions": run_hired_tiles, "mask": run_hired_image},
}


def run_file(path: Path) -> None:
    """Run a file of vectors.

    Raises:
        AssertionError: An output differs, or nothing runs this kind of file.
    """
    kinds = next((kinds for prefix, kinds in RUNNERS.items() if path.name.startswith(prefix)), None)
    if kinds is None:
        raise AssertionError(f"{path}: no golden test runs files of this name; they begin with {', '.join(RUNNERS)}")
    case = Case(path)
    run = next((run for key, run in kinds.items() if key in case), None)
    if run is None:
        raise AssertionError(f"{path}: has none of the keys {', '.join(kinds)} that tell its kind")
    run(case)
