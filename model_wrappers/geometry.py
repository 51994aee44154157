"""The sizes of a language model that the theoretical cost of its prompts follows from; logged with every run."""

from __future__ import annotations

from typing import Any


def decoder_geometry(model: Any) -> dict[str, int]:
    """Return the sizes of a model's decoder layers, with the field names of ``lmms_eval_stability.cost.Geometry``.

    Args:
        model: A transformers model whose decoder layers have a gated MLP (gate, up, down), as all families here have.
    """
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    return {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "intermediate": text.intermediate_size,
        "heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "bytes_per_element": model.dtype.itemsize,
        "mlp_matrices": 3,
    }
