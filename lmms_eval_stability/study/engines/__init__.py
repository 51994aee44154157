"""Where the processes of a study run: `base.Engine`, and one file per engine."""

from __future__ import annotations

from ..schema import EngineSpec
from .base import Engine, Started

__all__ = ["Engine", "Started", "make_engine", "workers_of"]


def make_engine(spec: EngineSpec) -> Engine:
    """The engine that a study names; each is imported when it is needed."""
    if spec.kind == "ray":
        from .ray import ray_engine

        return ray_engine(spec)
    from .local import local_engine

    return local_engine(spec)


def workers_of(spec: EngineSpec) -> int:
    """Processes at a time, for estimates, without connecting to anything."""
    if spec.workers is not None or spec.kind != "local":
        return spec.workers or 1
    return make_engine(spec).workers
