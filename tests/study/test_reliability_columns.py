"""Log-probabilities as they are read from lines, whatever these hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmms_eval_stability.samples import SampleTable, read_samples
from lmms_eval_stability.verdicts import adapter_for

from .conftest import sample

TOP = [[320, " square", -0.1], [319, " cross", -2.5]]


def read(tmp_path: Path, counts: list[Any], *, logprobs: bool = True, docs: list[int] | None = None) -> SampleTable:
    path = tmp_path / "x_samples_gqa.jsonl"
    rows = [
        sample(doc, "a", 1.0, token_counts=[one]) for doc, one in zip(docs or range(len(counts)), counts, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_samples(path, "gqa", adapter_for("gqa"), ("exact_match",), logprobs=logprobs)


def test_columns_by_document(tmp_path: Path) -> None:
    full = {
        "first_token_logprobs": TOP,
        "answer_logprob": -0.25,
        "output_tokens": 3,
        "visual_tokens": [144, 72],
        "visual_token_layers": [0, 2],
    }
    found = read(tmp_path, [full, {"output_tokens": 1}, {"answer_logprob": -1}], docs=[7, 5, 3]).logprobs
    assert found is not None
    assert found.docs.tolist() == [3, 7]  # document 5 says nothing
    docs = [5, 7, 3, 99]
    top = found.top_tokens(docs)
    assert top.ids[:, :3].tolist() == [[-1] * 3, [320, 319, -1], [-1] * 3, [-1] * 3]
    np.testing.assert_allclose(top.margin, [np.nan, 2.4, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found.answers(docs), [np.nan, -0.25, -1, np.nan])
    np.testing.assert_allclose(found.tokens(docs), [np.nan, 3, np.nan, np.nan])
    # two layers of 144 and six of 72
    np.testing.assert_allclose(found.kept(docs, 8), [np.nan, (2 * 144 + 6 * 72) / (8 * 144), np.nan, np.nan])
    assert np.isnan(found.kept(docs, None)).all()
    assert np.isnan(found.kept(docs, 2)).all()  # the model has no such layer


def test_nothing_is_kept_where_nothing_was_asked_or_logged(tmp_path: Path) -> None:
    assert read(tmp_path, [{"first_token_logprobs": TOP}], logprobs=False).logprobs is None
    found = read(tmp_path, [{"output_tokens": 1}, None]).logprobs
    assert found is not None
    assert len(found) == found.malformed == 0
    assert np.isnan(found.answers([0, 1])).all()
    assert np.isnan(found.kept([0, 1], 8)).all()


def test_the_first_line_of_a_document_counts(tmp_path: Path) -> None:
    found = read(tmp_path, [{"answer_logprob": -1.0}, {"answer_logprob": -2.0}], docs=[4, 4]).logprobs
    assert found is not None
    assert found.answers([4]).tolist() == [-1.0]


def test_order_more_than_five_and_forbidden_tokens(tmp_path: Path) -> None:
    many = [[i, "", -float(i)] for i in (2, 1, 3, 4, 5, 6)]
    forbidden = [[1, "", -0.5], [2, "", float("-inf")], [3, "", float("-inf")]]
    found = read(tmp_path, [{"first_token_logprobs": many}, {"first_token_logprobs": forbidden}]).logprobs
    assert found is not None
    top = found.top_tokens([0, 1])
    assert top.ids.tolist() == [[1, 2, 3, 4, 5], [1, -1, -1, -1, -1]]
    assert top.margin[0] == 1.0
    assert np.isnan(top.margin[1])


@pytest.mark.parametrize(
    "broken",
    [
        {"first_token_logprobs": "x"},
        {"first_token_logprobs": [[1, "a"]]},
        {"first_token_logprobs": [["1", "a", -1.0]]},
        {"first_token_logprobs": [[True, "a", -1.0]]},
        {"first_token_logprobs": [[2**40, "a", -1.0]]},
        {"first_token_logprobs": [[1, "a", 0.7]]},
        {"first_token_logprobs": [[1, "a", float("nan")]]},
        {"first_token_logprobs": [[1, "a", None]]},
        {"first_token_logprobs": {"a": 1}},
        {"answer_logprob": 3.0},
        {"answer_logprob": "-1"},
        {"answer_logprob": float("nan")},
    ],
)
def test_what_is_no_log_probability_is_counted_not_raised(tmp_path: Path, broken: dict[str, Any]) -> None:
    found = read(tmp_path, [{"answer_logprob": -1.0}, broken, broken], docs=[1, 8, 9]).logprobs
    assert found is not None
    assert (found.malformed, found.first_malformed) == (2, 8)
    assert found.docs.tolist() == [1]


def test_counts_of_visual_tokens_that_are_none(tmp_path: Path) -> None:
    counts = [
        {"answer_logprob": -1.0, "visual_tokens": visual, "visual_token_layers": layers}
        for visual, layers in (([4, 2], [0, 1]), ([[4]], [0]), ("4", [0]), ([4, 9.5], [0, 1]), ([0], [0]))
    ]
    found = read(tmp_path, counts).logprobs
    assert found is not None
    np.testing.assert_allclose(found.kept(list(range(5)), 2), [0.75, np.nan, np.nan, np.nan, np.nan])
