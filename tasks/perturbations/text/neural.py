"""Methods that need a neural model: back translation and four changes of style.

Official: TextFlint 0.1.0, generation/transformation/UT/back_trans.py, and Styleformer, with the models named in
`MODELS`. Back translation uses beam search there, the styles are sampled without a seed; for the formal and casual
styles five samples are drawn and the one is taken that an adequacy model likes best, or none. Here decoding is beam
search throughout, so that a question has one output; no adequacy model is used.

Models are read from a folder or the Hugging Face cache and never downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmms_eval_stability.tasks.perturbations.entries import MissingResourceError
from lmms_eval_stability.tasks.perturbations.text.resources import Resources, UnreadableResourceError
from lmms_eval_stability.tasks.perturbations.text.setting import Setting

#: Beams of the style models; the translation models bring their own number (5).
_BEAMS = 5
#: The official limit of the styles' output, which cuts long questions off; and the one used here.
_OFFICIAL_TOKENS, _TOKENS = 32, 256
#: Translation models know 1,024 positions, and the style models were trained on less.
_MOST_INPUT_TOKENS = 1024


@dataclass(frozen=True)
class Rewriter:
    """What a method does with a text.

    Attributes:
        models: repositories of the models, applied one after the other.
        prefix: what stands before the text for the (first) model.
    """

    models: tuple[str, ...]
    prefix: str = ""


#: Method -> its official models.
MODELS: dict[str, Rewriter] = {
    "to_passive": Rewriter(("prithivida/active_to_passive_styletransfer",), "transfer Active to Passive: "),
    "to_formal": Rewriter(("prithivida/informal_to_formal_styletransfer",), "transfer Casual to Formal: "),
    "to_casual": Rewriter(("prithivida/formal_to_informal_styletransfer",), "transfer Formal to Casual: "),
    "to_active": Rewriter(("prithivida/passive_to_active_styletransfer",), "transfer Passive to Active: "),
    "back_trans": Rewriter(("facebook/wmt19-en-de", "facebook/wmt19-de-en")),
}


def rewriting(method: str) -> Callable[[str, Setting], str]:
    """Return the function of a method: from the precomputed table if it has the method, else by the model."""

    def rewrite_one(text: str, setting: Setting) -> str:
        table = precomputed_table(setting.resources.precomputed)
        if method in table:
            if text not in table[method]:
                raise MissingResourceError(
                    f"{setting.resources.precomputed} has outputs of {method}, but none for the input {text!r};"
                    " add it with lmms_eval_stability.tasks.perturbations.text.precompute"
                )
            return table[method][text]
        return rewrite(method, [text], setting.resources, official_quirks=setting.official_quirks)[0]

    return rewrite_one


def rewrite(method: str, texts: Sequence[str], resources: Resources, *, official_quirks: bool = False) -> list[str]:
    """Return the outputs of a method for a batch of texts.

    Raises:
        MissingResourceError: models may not be run, or one is not there; names it and the command to get it.
    """
    if reason := why_missing(method, resources):
        raise MissingResourceError(reason)
    outputs = [MODELS[method].prefix + text for text in texts]
    for repository in MODELS[method].models:
        tokenizer, model = _load(repository, resources.models, resources.device)
        batch = tokenizer(outputs, return_tensors="pt", padding=True, truncation=True, max_length=_MOST_INPUT_TOKENS)
        generated = model.generate(
            input_ids=batch["input_ids"].to(resources.device),
            attention_mask=batch["attention_mask"].to(resources.device),
            **_decoding(method, official_quirks),
        )
        outputs = [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]
    return outputs


def _decoding(method: str, official_quirks: bool) -> dict[str, Any]:
    if method == "back_trans":
        return {"do_sample": False}
    limit = {"max_length": _OFFICIAL_TOKENS} if official_quirks else {"max_new_tokens": _TOKENS}
    return {"do_sample": False, "num_beams": _BEAMS, "early_stopping": True, **limit}


@lru_cache(maxsize=8)
def _load(repository: str, folder: Path | None, device: str) -> tuple[Any, Any]:
    """Return tokenizer and model, in single precision, from the folder or the Hugging Face cache."""
    import torch

    try:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        source = str(local_copy(repository, folder))
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        model = AutoModelForSeq2SeqLM.from_pretrained(source, local_files_only=True, dtype=torch.float32)
    except ImportError as error:
        raise MissingResourceError(
            f"{repository} cannot be loaded: {error}. Its tokenizer needs `pip install 'lmms-eval-stability[neural]'`"
        ) from error
    except (OSError, ValueError) as error:
        raise MissingResourceError(f"{repository} cannot be loaded: {error}. {_get([repository], folder)}") from error
    return tokenizer, model.eval().to(device)


def local_copy(repository: str, folder: Path | None) -> Path | None:
    """Return the folder that has a model, in ``folder`` or in the Hugging Face cache; None if there is none."""
    if folder is not None and (folder / repository / "config.json").is_file():
        return folder / repository
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def why_missing(method: str, resources: Resources) -> str | None:
    """Return why a method's models cannot be run, and the commands to get them; None if they can."""
    models = MODELS[method].models
    if not resources.allow_models:
        return (
            f"{method} needs {' and '.join(models)}, and models may not be run:"
            " LMMS_EVAL_STABILITY_TEXT_ALLOW_MODELS is 0"
        )
    absent = [repository for repository in models if local_copy(repository, resources.models) is None]
    if not absent:
        return None
    return (
        f"{method} needs {' and '.join(absent)}, not found on this machine. {_get(absent, resources.models)}. Or give"
        " a table of precomputed outputs with LMMS_EVAL_STABILITY_TEXT_PRECOMPUTED=FILE"
    )


def _get(repositories: Sequence[str], folder: Path | None) -> str:
    commands = [
        f"`hf download {repository}{'' if folder is None else f' --local-dir {folder / repository}'}`"
        for repository in repositories
    ]
    return f"Get it with {' and '.join(commands)}, and its tokenizer with `pip install 'lmms-eval-stability[neural]'`"


# --- outputs made beforehand -------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def precomputed_table(path: Path | None) -> Mapping[str, Mapping[str, str]]:
    """Read a table of outputs: method -> input -> output. The file has one JSON object a line.

    Raises:
        UnreadableResourceError: a line is not such an object, names no method that needs a model, or gives another
            output for an input than a line before; names the line.
    """
    table: dict[str, dict[str, str]] = {}
    if path is None:
        return table
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableResourceError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            method, given, output = row["method"], row["input"], row["output"]
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableResourceError(f"{path}, line {number}: not an object with method, input, output") from error
        if method not in MODELS or not isinstance(given, str) or not isinstance(output, str):
            raise UnreadableResourceError(
                f"{path}, line {number}: method must be one of {', '.join(MODELS)}, input and output text"
            )
        if table.setdefault(method, {}).setdefault(given, output) != output:
            raise UnreadableResourceError(f"{path}, line {number}: a second output of {method} for {given!r}")
    return table


def precompute(
    texts: Iterable[str],
    path: Path,
    *,
    methods: Sequence[str] = tuple(MODELS),
    resources: Resources | None = None,
    batch_size: int = 32,
    official_quirks: bool = False,
) -> int:
    """Write the outputs of methods that need a model for all texts, so that they are the same wherever they are used.

    Rows that the file has already are kept; so an interrupted call can be repeated.

    Args:
        texts: the questions as they are perturbed.
        path: JSON lines file, appended to.
        methods: of `MODELS`.
        resources: where the models are and run; default: from the environment.
        batch_size: texts at a time. The last digits of logits, and so rarely an output, depend on it.
        official_quirks: cut the styles' outputs at 32 tokens, as the official code does.

    Returns:
        Number of rows written.

    Raises:
        MissingResourceError: a model is not there.
        UnreadableResourceError: the file has something else in it.
    """
    from rich.progress import track

    resources = Resources.from_environment() if resources is None else resources
    texts = list(dict.fromkeys(texts))
    for method in methods:
        if reason := why_missing(method, resources):
            raise MissingResourceError(reason)
    precomputed_table.cache_clear()
    done = precomputed_table(path) if path.exists() else {}
    written = 0
    with path.open("a", encoding="utf-8") as file:
        for method in methods:
            left = [text for text in texts if text not in done.get(method, {})]
            for begin in track(range(0, len(left), batch_size), description=method, disable=not left):
                batch = left[begin : begin + batch_size]
                outputs = rewrite(method, batch, resources, official_quirks=official_quirks)
                for text, output in zip(batch, outputs, strict=True):
                    row = {"method": method, "input": text, "output": output}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written += 1
                file.flush()
    precomputed_table.cache_clear()
    return written
