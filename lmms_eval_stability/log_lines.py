"""The lines of a samples file, parsed: fast, and without a line that is passed over quietly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from .errors import RunFormatError
from .harness_logs import HarnessLog, converted

#: One line of a samples file.
Row = dict[str, Any]
_BOM = b"\xef\xbb\xbf"
#: Levels of lists and dicts in what is walked through level by level: more than any run has, far fewer than Python can.
DEEPEST = 100


def rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, parsed line) of every non-blank line; a line that cannot be parsed comes as the reason, a str.

    Of a log of lm-evaluation-harness these are the lines of its filter, in lmms-eval's layout.
    """
    return converted(logged_lines(path), path.filter) if isinstance(path, HarnessLog) else logged_lines(path)


def logged_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """As `rows_of`, every line as it was logged."""
    try:
        with path.open("rb", buffering=1 << 20) as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    line = line.removeprefix(_BOM)
                try:
                    row = orjson.loads(line)
                except ValueError:
                    if not line.strip():
                        continue
                    yield number, _slow_parse(line)
                    continue
                yield number, (row if type(row) is dict else "not a JSON object")
    except OSError as error:
        raise RunFormatError(f"{path}: cannot be read: {error.strerror}") from error


def python_json(raw: bytes) -> Any:
    """Parse what Python writes and strict JSON forbids: NaN, Infinity and lone surrogates."""
    parsed = json.loads(raw)
    if rb"\u" in raw or b"\xed" in raw:
        # a lone surrogate, escaped or as bytes, cannot be written to any file later on: replace it now
        parsed = json.loads(json.dumps(parsed, ensure_ascii=False).encode("utf-8", "replace"))
    return parsed


def is_deep(value: Any) -> bool:
    """Whether lists and dicts are nested beyond `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for one in level
            if isinstance(one, (list, dict))
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _slow_parse(line: bytes) -> Row | str:
    """A line that the fast parser refuses, or the reason why it is no sample record."""
    try:
        row = python_json(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON" if line.endswith(b"\n") else "cut off: the line has no end"
    return row if isinstance(row, dict) else "not a JSON object"
