"""The classes that lmms-eval imports by name: one per registered model, made from the registry."""

from __future__ import annotations

from lmms_eval_stability.model_wrappers.registry import MODELS, ModelEntry
from lmms_eval_stability.model_wrappers.wrapper import AcceleratedVLM

__all__ = [entry.class_name for entry in MODELS.values()]


def _model_class(entry: ModelEntry) -> type[AcceleratedVLM]:
    doc = f"``--model {entry.name}``: see ``AcceleratedVLM``."
    return type(entry.class_name, (AcceleratedVLM,), {"entry": entry, "__module__": __name__, "__doc__": doc})


globals().update({entry.class_name: _model_class(entry) for entry in MODELS.values()})
