"""Packages that quantised models need: refused before anything is loaded, with the extra that installs them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from lmms_eval_stability.model_wrappers.quantization.errors import MissingPackageError

#: What each extra of this package installs, as in pyproject.toml (a test compares the two).
EXTRAS: dict[str, tuple[str, ...]] = {
    "int8": ("bitsandbytes>=0.50,<0.51",),
    "gptq": ("gptqmodel>=5.7,<5.8", "optimum>=2.1,<2.3"),
    "awq": ("gptqmodel>=5.7,<5.8", "triton; sys_platform == 'linux'"),
    "compressed": ("compressed-tensors>=0.19",),
}

#: gptqmodel has no wheels and looks for torch while it builds.
_BUILT_FROM_SOURCE = ("gptq", "awq")


def require_extra(extra: str, what: str) -> None:
    """Raise unless everything that an extra installs is there, in a version of its range.

    Args:
        extra: a name of ``EXTRAS``.
        what: what needs it, to begin the message.

    Raises:
        MissingPackageError: with the command that installs the extra.
    """
    problems = []
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} {found} is installed, {requirement.specifier} is needed")
    if problems:
        raise MissingPackageError(f"{what} cannot be loaded: {'; '.join(problems)}. Install with: {install(extra)}")


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    if extra not in _BUILT_FROM_SOURCE:
        return f"pip install 'lmms-eval-stability[{extra}]'"
    command = f"pip install --no-build-isolation 'lmms-eval-stability[{extra}]'"
    return f"{command} (without a GPU: BUILD_CUDA_EXT=0 {command})"


def installed_versions(extras: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages of ``extras`` that are installed."""
    names = dict.fromkeys(Requirement(line).name for extra in extras for line in EXTRAS[extra])
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
