"""The registry of image perturbations, in the order of the paper's table."""

from __future__ import annotations

from lmms_eval_stability.tasks.perturbations.entries import Level, Perturbation

_OFFICIAL = "adarobustness/corruption, image_corruption/corruption_methods.py"


def _entry(
    name: str, paper_name: str, group: str, *, severities: int = 5, deterministic: bool = False
) -> tuple[str, Perturbation]:
    entry = Perturbation(
        name=name,
        paper_name=paper_name,
        modality="image",
        group=group,
        severities=severities,
        deterministic=deterministic,
        source=f"{_OFFICIAL}: {name}",
    )
    return name, entry


#: Name -> method. Names are those of the official functions.
METHODS: dict[str, Perturbation] = dict(
    (
        _entry("impulse_noise", "Impulse", "noise"),
        _entry("gaussian_noise", "Gaussian", "noise"),
        _entry("shot_noise", "Shot", "noise"),
        _entry("speckle_noise", "Speckle", "noise"),
        _entry("zoom_blur", "Zoom", "blur", deterministic=True),
        _entry("defocus_blur", "Defocus", "blur", deterministic=True),
        _entry("motion_blur", "Motion", "blur"),
        _entry("glass_blur", "Frosted Glass", "blur"),
        _entry("gaussian_blur", "Gaussian Blur", "blur", deterministic=True),
        _entry("jpeg_compression", "JPEG", "digital", deterministic=True),
        _entry("contrast", "Contrast", "digital", deterministic=True),
        _entry("elastic_transform", "Elastic", "digital"),
        _entry("saturate", "Saturate", "digital", deterministic=True),
        _entry("spatter", "Spatter", "digital"),
        _entry("pixelate", "Pixelate", "digital", deterministic=True),
        _entry("snow", "Snow", "weather"),
        _entry("frost", "Frost", "weather"),
        _entry("fog", "Fog", "weather"),
        _entry("brightness", "Brightness", "weather", deterministic=True),
        _entry("blank_image", "Blank", "blank", severities=1, deterministic=True),
    )
)

#: The paper's levels: all of every method.
PAPER_96: tuple[Level, ...] = tuple(level for method in METHODS.values() for level in method.levels)
