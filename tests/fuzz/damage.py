"""Ways in which a log comes to harm, as hypothesis strategies of functions from bytes to bytes."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]

#: Examples of each property: few in the suite; `LMMS_EVAL_STABILITY_FUZZ=5000` looks for longer.
EXAMPLES = int(os.environ.get("LMMS_EVAL_STABILITY_FUZZ", "0"))


def examples(few: int) -> settings:
    """Settings of a property: `few` examples in the suite, as many as the environment says in a long run."""
    return settings(deadline=None, max_examples=EXAMPLES or few)


#: Values that no log should hold where another kind of value is expected, as JSON.
ODD_VALUES = [
    *("null", "true", "[]", "{}", "[[]]", '""', '" "', "0", "-0.0", "1e999", "-1e400", "NaN", "Infinity", "1e-400"),
    *(str(2**63), str(-(2**63) - 1), str(2**64), "1" * 400, "9" * 5000, "1.5", '"1"', "[null]", '[["-1.5", "False"]]'),
    *('"\\ud800"', '"\\u0000"', '"<script>"', '{"error": "x"}', '{"score": 1}', '[{"error": 5}]', '[{"run": 3}]'),
    *('[{"input_fingerprint": ["a"], "visual_tokens": [{}], "visual_token_layers": [[]]}]', '{"prediction": 7}'),
    *("[" * depth + "]" * depth for depth in (50, 600, 1000, 1023, 1024, 5000, 200_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (600, 1000, 5000)),
]
KEYS = ["doc_id", "target", "filtered_resps", "token_counts", "exact_match", "input", "resps", "submission", "extra"]
KEYS += ["perturbation", "pope_accuracy", "gpt_eval_score", "mmmu_acc", "vqa_rad_record"]


def _lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def _cut(at: int, length: int) -> Damage:
    return lambda data: data[: at % (len(data) + 1)] + data[at % (len(data) + 1) + length :]


def _truncate(at: int) -> Damage:
    return lambda data: data[: at % (len(data) + 1)]


def _flip_bit(at: int, bit: int) -> Damage:
    def damage(data: bytes) -> bytes:
        if not data:
            return data
        place = at % len(data)
        return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]

    return damage


def _insert(at: int, what: bytes) -> Damage:
    return lambda data: data[: at % (len(data) + 1)] + what + data[at % (len(data) + 1) :]


def _reorder(order: list[int]) -> Damage:
    def damage(data: bytes) -> bytes:
        lines = _lines(data)
        ranked = sorted(range(len(lines)), key=lambda i: (order[i % len(order)], i))
        return b"".join(lines[i] for i in ranked)

    return damage


def _repeat(which: int, where: int) -> Damage:
    def damage(data: bytes) -> bytes:
        lines = _lines(data)
        if not lines:
            return data
        lines.insert(where % (len(lines) + 1), lines[which % len(lines)])
        return b"".join(lines)

    return damage


def _drop(which: int) -> Damage:
    def damage(data: bytes) -> bytes:
        lines = _lines(data)
        return b"".join(line for i, line in enumerate(lines) if i != which % max(1, len(lines)))

    return damage


def _recode(encoding: str) -> Damage:
    return lambda data: data.decode("utf-8", "replace").encode(encoding, "replace")


def _recode_line(which: int, encoding: str) -> Damage:
    def damage(data: bytes) -> bytes:
        lines = _lines(data)
        if lines:
            lines[which % len(lines)] = _recode(encoding)(lines[which % len(lines)])
        return b"".join(lines)

    return damage


def replace_value(line: bytes, key: str, value: str) -> bytes:
    """The line with this JSON as the value of `key`, added if it is not there; a line that is no object stays."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(row, dict):
        return line
    try:
        parts = [f"{json.dumps(name)}: {json.dumps(old)}" for name, old in row.items() if name != key]
    except RecursionError:
        return line
    return ("{" + ", ".join([*parts, f"{json.dumps(key)}: {value}"]) + "}\n").encode("utf-8", "replace")


def _replace(which: int, key: str, value: str, all_lines: bool) -> Damage:
    def damage(data: bytes) -> bytes:
        lines = _lines(data)
        for i in range(len(lines)):
            if all_lines or i == which % len(lines):
                lines[i] = replace_value(lines[i], key, value)
        return b"".join(lines)

    return damage


_place = st.integers(0, 5000)
_few = st.integers(0, 12)
_encodings = st.sampled_from(["utf-16", "utf-16-le", "utf-8-sig", "latin-1", "utf-32", "cp037"])
_bytes = st.sampled_from([b"\0", b"\xef\xbb\xbf", b"\n", b"\r", b"\r\n", b"\x1a", b"\xff", b"\xe2\x80\xa8", b"{", b"}"])

damages: st.SearchStrategy[Damage] = st.one_of(
    st.builds(_replace, _few, st.sampled_from(KEYS), st.sampled_from(ODD_VALUES), st.booleans()),
    st.builds(_flip_bit, _place, st.integers(0, 7)),
    st.builds(_cut, _place, st.integers(1, 300)),
    st.builds(_truncate, _place),
    st.builds(_insert, _place, st.one_of(_bytes, st.binary(min_size=1, max_size=4))),
    st.builds(_reorder, st.lists(_few, min_size=1, max_size=8)),
    st.builds(_repeat, _few, _few),
    st.builds(_drop, _few),
    st.builds(_recode, _encodings),
    st.builds(_recode_line, _few, _encodings),
    st.sampled_from([lambda data: data * 2, lambda data: data.replace(b"\n", b"\r\n"), gzip.compress, lambda _: b""]),
)


def apply(data: bytes, harm: list[Damage]) -> bytes:
    for damage in harm:
        data = damage(data)
    return data
