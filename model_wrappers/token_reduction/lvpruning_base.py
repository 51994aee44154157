"""Which base model is loaded: its sizes, and a digest of its weights as they are stored. Trained parts name both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lmms_eval_stability.model_wrappers.token_reduction.errors import UnsupportedModelError

#: Tensors up to this size are read whole, of larger ones as many bytes in ``_PIECES`` pieces spread evenly.
_WHOLE = 1 << 20
_PIECES = 16

_digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def base_config(config: Any) -> dict[str, Any]:
    """Return the sizes of a model by which a trained part fits it or not, ready for JSON."""
    text, vision = config.get_text_config(), config.vision_config
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = {"text": {name: getattr(text, name, None) for name in names}}
    names = ("model_type", "hidden_size", "num_hidden_layers", "image_size", "patch_size")
    sizes["vision"] = {name: getattr(vision, name, None) for name in names}
    return {"model_type": config.model_type, **sizes}


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights as its checkpoint stores them; made once per model object.

    Read from the files and not from memory, so that it does not depend on the dtype or the quantisation that the
    weights were loaded with. It covers the name, type and shape of every tensor, all bytes of those up to 1 MiB and
    1 MiB of the others, in 16 pieces from the first byte to the last: reading 14 GB at every start would take longer
    than loading them, and training or merging changes all pieces.

    Raises:
        UnsupportedModelError: the model does not come from a folder or a hub checkpoint of safetensors.
    """
    if model not in _digests:
        _digests[model] = files_digest(_weight_files(model))
    return _digests[model]


def files_digest(files: list[Path]) -> str:
    """Return the digest of safetensors files; how the tensors are spread over the files does not matter."""
    pieces = sorted((name, file, header, start) for file in files for name, header, start in _tensors(file))
    digest = hashlib.sha256()
    for name, file, header, start in pieces:
        digest.update(f"{name}\x1f{header['dtype']}\x1f{header['shape']}\x1e".encode())
        begin, end = header["data_offsets"]
        with file.open("rb") as stream:
            for offset, size in _spans(end - begin):
                stream.seek(start + begin + offset)
                digest.update(stream.read(size))
    return digest.hexdigest()


def _spans(size: int) -> Iterator[tuple[int, int]]:
    if size <= _WHOLE:
        yield 0, size
        return
    piece = _WHOLE // _PIECES
    for number in range(_PIECES):
        yield (size - piece) * number // (_PIECES - 1), piece


def _tensors(file: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield name and header of every tensor of a safetensors file, and where its data begin."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, entry, 8 + length


def _weight_files(model: Any) -> list[Path]:
    name = getattr(model.config, "_name_or_path", "") or ""
    folder = Path(name)
    if name and not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        revision = getattr(model.config, "_commit_hash", None)
        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            folder = Path()
    files = sorted(folder.glob("*.safetensors")) if name else []
    index = folder / "model.safetensors.index.json"
    if files and index.is_file():  # some checkpoints hold their weights twice, in one file and in several
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [file for file in files if file.name in named]
    if not files:
        raise UnsupportedModelError(
            f"the weights of the base model '{name}' cannot be told apart from others: there are no safetensors files"
            " of it; save the model with save_pretrained, and load it from there"
        )
    return files
