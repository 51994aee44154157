"""The demo model: a LLaVA-1.5 in miniature, with the same parts and the same choices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lmms_eval_stability.demo.scenes import IMAGE_SIZE
from lmms_eval_stability.demo.training.batches import GRID, N_PATCHES, PATCH_SIZE, token_id
from lmms_eval_stability.demo.training.prompts import BOS, CHAT_TEMPLATE, EOS, IMAGE, PAD, UNK, build_tokenizer

WIDTH = 128
VISION_LAYERS, DECODER_LAYERS = 4, 8
IMAGE_MEAN, IMAGE_STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)


def build_processor() -> LlavaProcessor:
    """Return the processor: CLIP picture preparation at 96x96, the demo tokenizer and LLaVA's chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=2048,
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """Return the untrained model in float32, initialised from `seed`.

    Args:
        tokenizer: gives the vocabulary size and the special tokens' ids.
        seed: of torch's generator, which is set here.
    """
    torch.manual_seed(seed)
    heads = WIDTH // 32
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=token_id(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=N_PATCHES,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    start_local(model)
    return model


SHIFTS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2)),
)
"""Where each head of the first vision layers looks at first: (rows, columns) from its own patch."""

FREQUENCIES = np.geomspace(0.1, 2.0, WIDTH // 4)
"""Of the position vectors, in radians per patch: fast enough to tell a patch from its neighbour."""


LOCALITY = 2.0
"""Gain of the initial projections: a neighbour then gets several times the attention of the patch next to it."""


@torch.no_grad()
def start_local(model: LlavaForConditionalGeneration) -> None:
    """Start the vision tower as a convolution would: 2-D sine-cosine positions, heads that look at neighbours.

    A transformer that starts from noise must first discover which patches are neighbours, and until then sees colours
    but no shapes. For position vectors made of (sin, cos) pairs, a head attends `shift` patches away when its keys are
    its queries' projection turned by `frequency * shift`. All weights remain free to change.
    """
    tower = model.model.vision_tower
    tower.embeddings.position_embedding.weight[1:] = sincos_positions(GRID)
    n = len(FREQUENCIES)
    for layer, shifts in zip(tower.encoder.layers, SHIFTS, strict=False):
        attention = layer.self_attn
        query, key = torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH, WIDTH)
        row = 0
        for head, shift in enumerate(shifts):
            for axis, steps in enumerate(shift):
                for i in range(head, n, len(shifts)):  # each head reads its own quarter of the frequencies
                    sin_at, cos_at = 2 * axis * n + i, (2 * axis + 1) * n + i
                    turn = float(FREQUENCIES[i]) * steps
                    query[row, sin_at] = query[row + 1, cos_at] = LOCALITY
                    key[row, sin_at] = key[row + 1, cos_at] = LOCALITY * math.cos(turn)
                    key[row, cos_at], key[row + 1, sin_at] = -LOCALITY * math.sin(turn), LOCALITY * math.sin(turn)
                    row += 2
        attention.q_proj.weight.add_(query)
        attention.k_proj.weight.add_(key)
        nn.init.normal_(attention.v_proj.weight, std=WIDTH**-0.5)
        nn.init.normal_(attention.out_proj.weight, std=0.5 * WIDTH**-0.5)


def sincos_positions(grid: int) -> Tensor:
    """Return position vectors (grid * grid, WIDTH), row by row: sin and cos of the row, then of the column.

    The amplitude makes them about as long as the embeddings of the patches they are added to.
    """
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    angles = [axis[:, None] * FREQUENCIES for axis in (rows, columns)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return 0.4 * torch.from_numpy(np.concatenate(parts, axis=1)).float()


def normalise(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels (B, H, W, 3) into what `CLIPImageProcessor` gives the model: float32 (B, 3, H, W)."""
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    return ((pixels.float() / 255.0 - mean) / std).permute(0, 3, 1, 2).contiguous()


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write weights in half precision, with configuration, tokenizer, processor and chat template, to `folder`.

    The file holds float16 to stay small; the configuration says float32, so that a plain `from_pretrained`, which
    follows the configuration, computes in float32 (float16 is slow on CPUs). `dtype=` overrides it as usual.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().to(torch.float16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)
