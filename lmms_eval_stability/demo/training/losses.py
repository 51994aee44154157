"""What training minimises: the answers, and auxiliary losses from the generator's ground truth that speed it up."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from lmms_eval_stability.demo.scenes import COLORS, OBJECT_COUNTS, SHAPES
from lmms_eval_stability.demo.training.architecture import WIDTH, normalise
from lmms_eval_stability.demo.training.batches import N_PATCHES, SILHOUETTE_CELLS, Batch, prefix_ids

BACKGROUND_WEIGHT = 0.2
"""Weight of a background patch in the patch losses; most patches are background."""

SILHOUETTE_WEIGHT = 4.0


@dataclass(frozen=True)
class TensorBatch:
    """`Batch` as torch tensors; same fields, same shapes."""

    pixels: Tensor
    tokens: Tensor
    prompt_lengths: Tensor
    answers: Tensor
    kinds: Tensor
    patch_shape: Tensor
    patch_color: Tensor
    patch_offset: Tensor
    silhouette: Tensor
    pairs: Tensor
    n_objects: Tensor

    @classmethod
    def of(cls, batch: Batch) -> TensorBatch:
        return cls(**{field.name: torch.from_numpy(getattr(batch, field.name)) for field in fields(batch)})


@dataclass(frozen=True)
class Vision:
    """What the vision tower saw: the features LLaVA uses (second to last layer) and the pooled class token.

    Attributes:
        features: (B, 1 + N, C), class token first.
        pooled: (B, C), the last layer's class token after the final norm.
    """

    features: Tensor
    pooled: Tensor


class AuxiliaryHeads(nn.Module):
    """Linear read-outs used only in training; they are not part of the shipped model.

    Patches are asked for shape, colour and the way to the object's centre. The class token, on both of the last two
    layers, is asked which colour-shape pairs there are and how many objects. LLaVA's language model never reads the
    class token, so without this its attention would be random, and methods that rank patches by it meaningless.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shape = nn.Linear(WIDTH, 1 + len(SHAPES))
        self.color = nn.Linear(WIDTH, 1 + len(COLORS))
        self.offset = nn.Linear(WIDTH, 2)
        self.silhouette = nn.Linear(WIDTH, SILHOUETTE_CELLS)
        outputs = len(COLORS) * len(SHAPES) + len(OBJECT_COUNTS)
        self.contents = nn.ModuleList([nn.Linear(WIDTH, outputs) for _ in range(2)])

    def forward(self, vision: Vision, batch: TensorBatch) -> Tensor:
        """Return the sum of the patch losses and the class-token losses, a scalar."""
        patches = vision.features[:, 1:].float()
        owned = (batch.patch_shape > 0).float()
        weight = owned + BACKGROUND_WEIGHT * (1 - owned)
        loss = patches.new_zeros(())
        for head, target in ((self.shape, batch.patch_shape), (self.color, batch.patch_color)):
            each = functional.cross_entropy(head(patches).transpose(1, 2), target, reduction="none")
            loss = loss + (each * weight).sum() / weight.sum()
        guess = self.silhouette(patches)
        outline = functional.binary_cross_entropy_with_logits(guess, batch.silhouette, reduction="none").mean(-1)
        loss = loss + SILHOUETTE_WEIGHT * (outline * owned).sum() / owned.sum().clamp(min=1)
        miss = functional.smooth_l1_loss(self.offset(patches), batch.patch_offset, reduction="none").mean(-1)
        loss = loss + (miss * owned).sum() / owned.sum().clamp(min=1)
        for read_out, token in zip(self.contents, (vision.features[:, 0], vision.pooled), strict=True):
            pairs, count = read_out(token.float()).split([batch.pairs.shape[1], len(OBJECT_COUNTS)], dim=-1)
            # 5 ~ pairs per object that are absent: without it, "nothing is there" is a comfortable answer.
            loss = loss + functional.binary_cross_entropy_with_logits(pairs, batch.pairs, pos_weight=torch.tensor(5.0))
            loss = loss + 0.5 * functional.cross_entropy(count, batch.n_objects - 1)
        return loss


def see(model: LlavaForConditionalGeneration, batch: TensorBatch) -> Vision:
    """Run the vision tower on the batch's pictures."""
    output = model.model.vision_tower(normalise(batch.pixels), output_hidden_states=True)
    return Vision(output.hidden_states[model.config.vision_feature_layer], output.pooler_output)


def subset_of_patches(batch: TensorBatch, keep: int) -> Tensor:
    """Return, ascending, `keep` patch indices per picture (B, keep): those of objects first, then random background.

    Fewer tokens make early training cheaper. Objects own far fewer than 64 patches, so nothing asked about is lost.
    """
    priority = torch.rand(batch.patch_shape.shape) + (batch.patch_shape > 0).float()
    return priority.topk(keep, dim=1).indices.sort(dim=1).values


def answer_logits(
    model: LlavaForConditionalGeneration, vision: Vision, batch: TensorBatch, keep: Tensor | None
) -> Tensor:
    """Return the logits at the two positions that matter of each question: (B, Q, 2, vocabulary).

    The first predicts the answer, the second the end of the sequence. All Q questions of a picture stand behind one
    visual prefix and cannot see each other, so each is computed exactly as if it stood alone.

    Args:
        keep: patch indices (B, K) the language model is shown, or None for all of them. A patch keeps its position
            number whether or not others are left out.
    """
    visual = vision.features[:, 1:]
    n_images, n_questions, length = batch.tokens.shape
    if keep is None:
        keep = torch.arange(N_PATCHES).expand(n_images, -1)
    else:
        visual = visual.gather(1, keep[..., None].expand(-1, -1, visual.shape[-1]))
    embed = model.get_input_embeddings()
    prefix = torch.tensor(prefix_ids())
    before, after = embed(prefix[:-2]), embed(prefix[-1:])  # the second to last is the picture's placeholder
    parts = [
        before.expand(n_images, -1, -1),
        model.model.multi_modal_projector(visual),
        after.expand(n_images, -1, -1),
        embed(batch.tokens.reshape(n_images, -1)),
    ]
    start = len(prefix) - 2
    text = start + N_PATCHES + 1 + torch.arange(length).repeat(n_questions)
    positions = torch.cat([torch.arange(start), torch.tensor([start + N_PATCHES]), text]).expand(n_images, -1)
    positions = torch.cat([positions[:, :start], start + keep, positions[:, start:]], dim=1)
    inputs = torch.cat([part.to(parts[1].dtype) for part in parts], dim=1)
    n_prefix = start + keep.shape[1] + 1
    hidden = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=packed_mask(n_prefix, n_questions, length, inputs.dtype),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state[:, n_prefix:]
    hidden = hidden.reshape(n_images, n_questions, length, -1)
    last = torch.stack([batch.prompt_lengths - 1, batch.prompt_lengths], dim=-1)
    chosen = hidden.gather(2, last[..., None].expand(-1, -1, -1, hidden.shape[-1]))
    logits: Tensor = model.lm_head(chosen)
    return logits.float()


@lru_cache(maxsize=32)
def packed_mask(n_prefix: int, n_blocks: int, length: int, dtype: torch.dtype) -> Tensor:
    """Return the additive attention mask (1, 1, L, L) of a causal prefix followed by mutually invisible blocks."""
    block = torch.cat([torch.full((n_prefix,), -1), torch.arange(n_blocks).repeat_interleave(length)])
    visible = (block[None, :] == -1) | (block[:, None] == block[None, :])
    visible &= torch.ones_like(visible).tril()
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return mask[None, None]


def answer_loss(logits: Tensor, batch: TensorBatch, eos: int) -> Tensor:
    """Return the mean cross-entropy of the answers plus, at a tenth of the weight, that of stopping after them."""
    stop = torch.full_like(batch.answers, eos)
    answer = functional.cross_entropy(logits[:, :, 0].flatten(0, 1), batch.answers.flatten())
    return answer + 0.1 * functional.cross_entropy(logits[:, :, 1].flatten(0, 1), stop.flatten())
