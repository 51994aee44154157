"""What int8 and nf4 share: both quantise a 16-bit checkpoint while it is loaded, or load one saved that way."""

from __future__ import annotations

from typing import Any

from lmms_eval_stability.model_wrappers.quantization.base import LoadRequest
from lmms_eval_stability.model_wrappers.quantization.errors import BackendError, SchemeMismatchError
from lmms_eval_stability.model_wrappers.quantization.module_names import respell_all, transformers_matches
from lmms_eval_stability.model_wrappers.quantization.packages import require_extra

EXTRA = "int8"
_SKIP = "llm_int8_skip_modules"


def require_bitsandbytes(request: LoadRequest, scheme: str) -> None:
    """Raise unless bitsandbytes is there and runs on the device.

    Raises:
        MissingPackageError, BackendError: with the remedy.
    """
    require_extra(EXTRA, f"{request.model} ({scheme})")
    import bitsandbytes

    supported = {str(name) for name in bitsandbytes.supported_torch_devices}
    if request.device.type not in supported:
        raise BackendError(
            f"{request.model}: bitsandbytes does not run on {request.device.type}; it runs on"
            f" {', '.join(sorted(supported - {'hpu', 'npu'}))}: set device"
        )


def stored_config(
    request: LoadRequest, parameters: dict[str, tuple[str, Any]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the config of a checkpoint that was saved quantised, with the spellings of this transformers.

    Args:
        request: with ``stored``.
        parameters: of the scheme: name -> (its name in the config, its value). Those of the checkpoint cannot be
            changed by loading it, so they must agree.

    Raises:
        SchemeMismatchError: the checkpoint was made with other parameters.
    """
    assert request.stored is not None
    config = dict(request.stored.config)
    for name, (key, value) in parameters.items():
        if key in config and config[key] != value:
            raise SchemeMismatchError(
                f"'{request.pretrained}' was saved with {key}={config[key]}; write {name}={config[key]} or load the"
                " 16-bit checkpoint"
            )
    given = list(config.get(_SKIP) or ())
    spelled, changed = respell_all(_SKIP, given, request.names.linears, transformers_matches)
    config[_SKIP] = list(dict.fromkeys([*spelled, *request.in_16_bit]))
    return config, tuple(changed)
