"""The embedded demo model and the picture data set it answers questions about.

Importing this package costs nothing: no torch, no transformers. `scenes` draws pictures, `questions` asks about them,
`dataset` assembles the held-out set of the `shapes_vqa` task, and `training` (the only place that imports torch) is how
the shipped weights in `model/` were made.
"""

from __future__ import annotations

from pathlib import Path

MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
"""Folder of the shipped weights, configuration, tokenizer, processor and chat template."""

PRUNER_DIR: Path = MODEL_DIR.with_name("pruner")
"""Folder of a pruner that `lmms-eval-stability train-pruner` made for the demo model; `pruner=demo` means it."""

SHORT_NAME: str = "demo"
"""What a user writes as `pretrained=` instead of the path."""

SHORT_NAMES: dict[str, Path] = {
    SHORT_NAME: MODEL_DIR,
    "demo-gptq": MODEL_DIR.with_name("model_gptq"),
    "demo-awq": MODEL_DIR.with_name("model_awq"),
    "demo-gptq-3bit": MODEL_DIR.with_name("model_gptq_3bit"),
    "demo-awq-3bit": MODEL_DIR.with_name("model_awq_3bit"),
}
"""The model, and what `lmms-eval-stability quantize` made of it in 4 and 3 bits (each folder has its card)."""


def model_path(name: str = SHORT_NAME) -> Path:
    """Return the folder to hand to `from_pretrained`; raise if the weights are not there.

    Args:
        name: one of `SHORT_NAMES`.

    Raises:
        FileNotFoundError: the installation lacks the weights (a source tree without them, or a broken package).
    """
    folder = SHORT_NAMES[name]
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"the demo model's weights are missing at {weights}; reinstall the package, "
            "or train them with `python -m lmms_eval_stability.demo.training`"
        )
    return folder
