"""The studies that are shipped."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The folder `configs/` of the installed package."""
    import lmms_eval_stability.configs

    return Path(next(iter(lmms_eval_stability.configs.__path__)))


def demo_config() -> Path:
    """The YAML of the demo study."""
    return config_dir() / "demo.yaml"
