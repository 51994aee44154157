"""Tiny models with random weights, one per supported architecture, built in code.

Each has the parts of the real checkpoint that the package touches: the same configuration classes, chat template style,
special tokens, padding token and generation defaults, a vision tower that really sees the image, and weights scaled so
that answers depend on the picture and on the question. They answer nonsense; nothing here is about accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

KINDS = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")

#: Decoder layers of every tiny model: enough for stages at several depths.
DEPTH = 8
_HIDDEN = 64
_HEADS = 4
_IMAGE_SIZE = 56
_PATCH = 14  # the Qwen helpers of lmms-eval assume 14, so all kinds use it

_LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_MISTRAL_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}"
    "{{ '[/INST]' }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ ' ' + content['text'] + '</s> ' }}"
    "{% endfor %}{% endif %}{% endfor %}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = (
    "USER: ASSISTANT: [INST] [/INST] system user assistant You are a helpful assistant.",
    "What color is the car on the left of the image? Answer the question using a single word or phrase.",
    "Is there a dog in the picture? How many people are there? yes no red green blue black white",
    "Describe the two images. Which one shows a cat, a tree, a house or the street at night?",
)


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Return an RGB picture of coloured blocks, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def build_tiny(kind: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny random model of ``kind`` with its processor to ``folder`` and return the folder.

    Args:
        kind: One of ``KINDS``.
        folder: Created if missing; loadable with ``AutoProcessor`` and ``AutoModelForImageTextToText``.
        seed: Seed of the weights.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    builders = {
        "llava": _llava,
        "llava_next": _llava_next,
        "qwen2_vl": _qwen2_vl,
        "qwen2_5_vl": _qwen2_5_vl,
    }
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = builders[kind]()
        _scale_weights(model)
    model.eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _scale_weights(model: PreTrainedModel) -> None:
    """Draw weights large enough that answers differ, small enough that fp32 comparisons stay sharp."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
            elif "norm" not in name and "ln_q" not in name:  # CLS embedding and image_newline
                nn.init.normal_(parameter)
            continue
        if "embed_tokens" in name or "position_embedding" in name:
            std = 1.0
        else:
            fan_in = parameter[0].numel()
            gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.2
            std = (4.0 if "lm_head" in name else gain) / fan_in**0.5
        nn.init.normal_(parameter, std=std)


def _tokenizer(specials: list[str], bos: str | None, eos: str, pad: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a few sentences; ``specials`` get the lowest ids, in order."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False
    )
    core.train_from_iterator(_CORPUS, trainer)
    if bos is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        additional_special_tokens=[s for s in specials if s not in (bos, eos, pad)],
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )


def _llama_style_tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer(["<unk>", "<s>", "</s>", "<image>", "<pad>"], bos="<s>", eos="</s>", pad="<pad>")


def _clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=_IMAGE_SIZE,
        patch_size=_PATCH,
        projection_dim=32,
    )


def _text_arguments(tokenizer: PreTrainedTokenizerFast, kv_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _set_generation_defaults(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **more: Any) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, **more
    )


def _llava() -> tuple[PreTrainedModel, Any]:
    tokenizer = _llama_style_tokenizer()
    config = LlavaConfig(
        vision_config=_clip_config(),
        text_config=LlamaConfig(**_text_arguments(tokenizer, kv_heads=_HEADS)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(_IMAGE_SIZE // _PATCH) ** 2,
    )
    model = LlavaForConditionalGeneration(config)
    _set_generation_defaults(model, tokenizer, eos_token_id=tokenizer.eos_token_id)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": _IMAGE_SIZE}, crop_size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    return model, processor


def _llava_next() -> tuple[PreTrainedModel, Any]:
    tokenizer = _llama_style_tokenizer()
    side = _IMAGE_SIZE
    grid = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    config = LlavaNextConfig(
        vision_config=_clip_config(),
        text_config=MistralConfig(sliding_window=None, **_text_arguments(tokenizer, kv_heads=2)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(_IMAGE_SIZE // _PATCH) ** 2,
    )
    model = LlavaNextForConditionalGeneration(config)
    _set_generation_defaults(model, tokenizer, eos_token_id=tokenizer.eos_token_id)
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=grid
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_MISTRAL_TEMPLATE,
    )
    return model, processor


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    specials += ["<|image_pad|>", "<|video_pad|>"]
    return _tokenizer(specials, bos=None, eos="<|im_end|>", pad="<|endoftext|>")


def _qwen_arguments(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = _text_arguments(tokenizer, kv_heads=2)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    return {
        "text_config": text,
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def _qwen_defaults(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    _set_generation_defaults(model, tokenizer, eos_token_id=ends, repetition_penalty=1.05)


def _qwen_media(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    size = {"shortest_edge": 16 * 28 * 28, "longest_edge": 64 * 28 * 28}  # 16 to 64 visual tokens per image
    shape = {"patch_size": _PATCH, "temporal_patch_size": 2, "merge_size": 2}
    return {
        "image_processor": Qwen2VLImageProcessor(size=dict(size), **shape),
        "video_processor": Qwen2VLVideoProcessor(size=dict(size), **shape),
        "tokenizer": tokenizer,
        "chat_template": _QWEN_TEMPLATE,
    }


def _qwen2_vl() -> tuple[PreTrainedModel, Any]:
    tokenizer = _qwen_tokenizer()
    vision = {"depth": 3, "embed_dim": 32, "num_heads": 2, "hidden_size": _HIDDEN, "mlp_ratio": 2, "patch_size": _PATCH}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, **_qwen_arguments(tokenizer)))
    _qwen_defaults(model, tokenizer)
    return model, Qwen2VLProcessor(**_qwen_media(tokenizer))


def _qwen2_5_vl() -> tuple[PreTrainedModel, Any]:
    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": _HIDDEN,
        "patch_size": _PATCH,
        "window_size": 4 * _PATCH,
        "fullatt_block_indexes": [1, 3],
    }
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, **_qwen_arguments(tokenizer)))
    _qwen_defaults(model, tokenizer)
    return model, Qwen2_5_VLProcessor(**_qwen_media(tokenizer))
