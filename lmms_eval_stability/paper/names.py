"""What the paper calls benchmarks, base models and methods, and what they are called here."""

from __future__ import annotations

import re

#: (benchmark, state of the input) -> lmms-eval tasks that ask it; the first one that was run counts.
TASKS: dict[tuple[str, str], tuple[str, ...]] = {
    ("VQAv2", "none"): ("vqav2_val",),
    ("VQAv2", "vision"): ("vqav2_val_image_perturbed",),
    ("VQAv2", "text"): ("vqav2_val_text_perturbed_87", "vqav2_val_text_perturbed"),
    ("GQA", "none"): ("gqa",),
    ("GQA", "vision"): ("gqa_image_perturbed",),
    ("GQA", "text"): ("gqa_text_perturbed_87", "gqa_text_perturbed"),
    ("AI2D", "none"): ("ai2d",),
    ("ScienceQA", "none"): ("scienceqa_img",),
    ("TextVQA", "none"): ("textvqa_val",),
    ("OKVQA", "none"): ("ok_vqa_val2014",),
    ("VizWiz", "none"): ("vizwiz_vqa_val",),
    ("MMBench", "none"): ("mmbench_en_dev_static", "mmbench_en_dev"),
    ("MMMU", "none"): ("mmmu_val",),
    ("POPE", "none"): ("pope",),
    ("VQA-RAD", "none"): ("vqa_rad",),
    ("VQA-RAD/open", "none"): ("vqa_rad",),
    ("VQA-RAD/closed", "none"): ("vqa_rad",),
    **{
        (part, "none"): ("llava_med_conversation",)
        for part in ("Conversation", "Description", "Chest-Xray", "MRI", "Histology", "Gross", "CT", "Overall")
    },
}

#: Folder of a run, which is the label of its method in a study -> method in the paper.
METHODS: dict[str, str] = {
    "fastv": "FastV",
    "hired": "HiRED",
    "pyramiddrop": "PyramidDrop",
    "sparsevlm": "SparseVLM",
    "visionzip": "VisionZip",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "int8": "LLM.Int8()",
}

#: What the name of a base model or of its checkpoint holds, letters and digits only -> base model in the paper.
_BASES: dict[str, str] = {
    "llavamed": "LLaVA-Med",
    "llava15": "LLaVA-1.5",
    "llavanext": "LLaVA-Next",
    "llavav16": "LLaVA-Next",
    "llava16": "LLaVA-Next",
    "qwen25vl": "Qwen2.5-VL",
    "qwen2vl": "Qwen2-VL",
}
BASE_MODELS: tuple[str, ...] = tuple(dict.fromkeys(_BASES.values()))


def base_model(*names: str) -> str:
    """The base model that the first name speaks of that speaks of any.

    "" if none does, or if one speaks of another size than the paper's 7B.
    """
    sizes = {size for name in names for size in re.findall(r"(?<![0-9.])([0-9]+)b(?![a-z0-9])", name.lower())}
    if sizes - {"7"}:
        return ""
    for name in names:
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        for part, found in _BASES.items():
            if part in plain:
                return found
    return ""
