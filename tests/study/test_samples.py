from __future__ import annotations

import json
import math
from pathlib import Path
from types import MappingProxyType

import pytest

from lmms_eval_stability.errors import RunFormatError
from lmms_eval_stability.samples import answer_of, as_number, find_metric, read_samples
from lmms_eval_stability.verdicts import adapter_for

from .conftest import Row, sample


def read(path: Path, content: bytes | list[Row], candidates: tuple[str, ...] = ("exact_match",)) -> object:
    if isinstance(content, list):
        content = b"".join(json.dumps(row).encode() + b"\n" for row in content)
    path.write_bytes(content)
    return read_samples(path, "gqa", adapter_for("gqa"), candidates)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "x_samples_gqa.jsonl"


def line(row: Row) -> bytes:
    return json.dumps(row).encode()


def test_columns_and_order_of_the_file(log: Path) -> None:
    fingerprint = {"output_tokens": 1, "input_fingerprint": "ab12", "run": {"dtype": "float32"}}
    table = read(log, [sample(7, "b", 0.5, token_counts=[fingerprint]), sample(3, "a", 1)])
    frame = table.frame
    assert frame["doc_id"].tolist() == [7, 3]
    assert frame["line"].tolist() == [1, 2]
    assert frame["score"].tolist() == [0.5, 1.0]
    assert frame["response"].tolist() == ["b", "a"]
    assert frame["fingerprint"].tolist() == ["ab12", None]
    assert table.facts == {"dtype": "float32"}
    assert (table.metric, table.n_bad) == ("exact_match", 0)


@pytest.mark.parametrize("counts", [[None], [], None, [{"output_tokens": 3}], [{}], "odd", [[1]]])
def test_logs_of_other_models_have_no_measurements(log: Path, counts: object) -> None:
    frame = read(log, [sample(0, "a", 1.0, token_counts=counts)]).frame
    assert frame[["fingerprint", "error"]].iloc[0].tolist() == [None, None]


def test_bom_crlf_blank_lines_and_a_last_line_without_end_are_fine(log: Path) -> None:
    content = b"\xef\xbb\xbf" + line(sample(0, "a", 1.0)) + b"\r\n\r\n" + line(sample(1, "b", 0.0))
    table = read(log, content)
    assert table.frame["doc_id"].tolist() == [0, 1]
    assert table.n_bad == 0


def test_nan_and_infinity_as_python_writes_them(log: Path) -> None:
    rows = [sample(0, "a", math.nan), sample(1, "b", math.inf), sample(2, "c", None), sample(3, "d", 1)]
    scores = read(log, rows).frame["score"].tolist()
    assert math.isnan(scores[0])
    assert scores[1] == math.inf
    assert math.isnan(scores[2])
    assert scores[3] == 1.0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"doc_id": 1, "targ', "cut off: the line has no end"),
        (b'{"doc_id": 1, "targ\n', "not JSON"),
        (b"[1, 2]\n", "not a JSON object"),
        (b"NaN\n", "not a JSON object"),
        (b'{"doc_id": 1, "target": "\xff"}\n', "not UTF-8"),
        (b'{"target": "t", "input": "i", "filtered_resps": "a"}\n', "no 'doc_id'"),
        (b'{"doc_id": 1, "target": "t", "input": "i"}\n', "no 'filtered_resps'"),
        (b'{"doc_id": "1", "target": "t", "input": "i", "filtered_resps": "a"}\n', "doc_id is not an integer"),
        (b'{"doc_id": true, "target": "t", "input": "i", "filtered_resps": "a"}\n', "doc_id is not an integer"),
        (b'{"doc_id": 1' + b"0" * 30 + b', "target": "t", "input": "i", "filtered_resps": "a"}\n', "not an integer"),
        (b"[" * 100_000 + b"\n", "not JSON"),
    ],
)
def test_a_bad_line_is_counted_with_its_reason_and_the_rest_is_read(log: Path, bad: bytes, reason: str) -> None:
    table = read(log, line(sample(0, "a", 1.0)) + b"\n" + bad)
    assert table.frame["doc_id"].tolist() == [0]
    assert table.n_bad == 1
    assert table.bad_lines[0].line == 2
    assert reason in table.bad_lines[0].reason


def test_a_bad_first_line_does_not_decide_the_metric(log: Path) -> None:
    table = read(log, b'{"doc_id": 9}\n' + line(sample(0, "a", 1.0)) + b"\n")
    assert (table.metric, len(table.frame), table.n_bad) == ("exact_match", 1, 1)


def test_lone_surrogates_become_writable_text(log: Path) -> None:
    frame = read(
        log, b'{"doc_id": 0, "target": "t", "input": "i", "filtered_resps": "x\\ud800", "exact_match": 1}\n'
    ).frame
    frame["response"].iloc[0].encode("utf-8")
    assert frame["response"].iloc[0].startswith("x")


@pytest.mark.parametrize(
    ("answer", "text", "kind"),
    [
        ("yes", "yes", "text"),
        (["yes"], "yes", "text"),
        ([["yes"]], "yes", "text"),
        (None, "", "text"),
        ([], "", "text"),
        ([None], "", "text"),
        ([""], "", "text"),
        (["", "  "], "", "text"),
        (3, "3", "text"),
        # lmms-eval's multiple choice takes the least number: its models return losses
        ([[1.2, "False"], [0.3, "True"], [0.9, "False"]], "choice 2", "choice"),
        ([[1.2, False], [0.3, True]], "choice 2", "choice"),
        ([[0.3, False], [0.3, True]], "choice 1", "choice"),
        # and its log holds texts
        ([["10.5", "False"], ["9.75", "True"], ["inf", "False"]], "choice 2", "choice"),
        ([["yes", "False"], ["no", "True"]], '[["yes", "False"], ["no", "True"]]', "list"),
        (["a", 1], '["a", 1]', "list"),
        (["a", "b"], '["a", "b"]', "list"),
        ([[math.nan, False], [0.3, True]], "[[NaN, false], [0.3, true]]", "list"),
        ({"a": 1}, '{"a": 1}', "list"),
    ],
)
def test_answers_that_are_no_text(answer: object, text: str, kind: str) -> None:
    assert answer_of(answer) == (text, kind)


def test_a_table_counts_choices_lists_and_measured_rows(log: Path) -> None:
    choice = [[0.1, "True"], [0.2, "False"]]
    table = read(log, [sample(0, choice, 1, token_counts=[None]), sample(1, ["a", "b"], 1.0), sample(2, ["a", 1], 1.0)])
    assert table.frame["response"].tolist() == ["choice 1", '["a", "b"]', '["a", 1]']
    assert (table.n_choices, table.first_list, table.n_measured) == (1, 2, 2)


def test_texts_are_shared_between_runs(log: Path) -> None:
    pool: dict[str, str] = {}
    log.write_bytes(line(sample(0, "yes", 1.0)) + b"\n")
    a, b = (read_samples(log, "gqa", adapter_for("gqa"), ("exact_match",), pool).frame for _ in range(2))
    assert a["input"].iloc[0] is b["input"].iloc[0]


def test_texts_of_a_run_do_not_outlive_it_in_a_pool_that_is_only_looked_at(log: Path) -> None:
    log.write_bytes(line(sample(0, "yes", 1.0)) + b"\n")
    pool: dict[str, str] = {}
    a = read_samples(log, "gqa", adapter_for("gqa"), ("exact_match",), pool).frame
    before = dict(pool)
    log.write_bytes(line(sample(0, "no", 1.0)) + b"\n")
    b = read_samples(log, "gqa", adapter_for("gqa"), ("exact_match",), MappingProxyType(pool)).frame
    assert a["input"].iloc[0] is b["input"].iloc[0]
    assert pool == before


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        ("True", 1.0),
        ("False", 0.0),
        ({"score": 0.5, "x": 1}, 0.5),
        (10**400, math.nan),
        ("1", math.nan),
        (None, math.nan),
        ([1], math.nan),
        ({}, math.nan),
    ],
)
def test_numbers_as_logged(value: object, number: float) -> None:
    found = as_number(value)
    assert found == number or (math.isnan(found) and math.isnan(number))


def metric_of(log: Path, rows: list[dict[str, object]], candidates: tuple[str, ...], only: bool = False) -> str:
    common = {"target": "t", "input": "i", "filtered_resps": "a"}
    log.write_bytes(b"".join(json.dumps({"doc_id": i, **common, **row}).encode() + b"\n" for i, row in enumerate(rows)))
    return find_metric(log, candidates, only, "here")


def test_metric_is_the_first_wanted_one_else_the_only_number(log: Path) -> None:
    row = {"anls": 0.5, "acc": 1.0, "submission": {"score": 1}, "note": "x"}
    assert metric_of(log, [row], ("exact_match", "acc")) == "acc"
    assert metric_of(log, [{"anls": 0.5, "note": "x"}], ()) == "anls"
    assert metric_of(log, [], ("exact_match",)) == ""
    with pytest.raises(RunFormatError, match=r"here: no numeric metric in the log \(keys: note\)"):
        metric_of(log, [{"note": "x", "submission": {}}], ())


def test_no_line_alone_decides_the_metric(log: Path) -> None:
    rows = [{"mme_cognition_score": 1.0}, {"mme_perception_score": 0.0}]
    both = ("mme_perception_score", "mme_cognition_score")
    assert metric_of(log, rows, both, only=True) == "mme_perception_score"
    assert metric_of(log, rows, ("nope", "mme_perception_score"), only=True) == "mme_perception_score"


def test_a_question_id_never_becomes_the_score(log: Path) -> None:
    rows = [{"question_id": 1000, "anls_x": 1.0}]
    with pytest.raises(RunFormatError, match="several numbers in the log, which has question_id, anls_x; name one"):
        metric_of(log, rows, ("exact_match",))
    with pytest.raises(RunFormatError, match="no metric 'ANLS' in the log, which has question_id; name one with"):
        metric_of(log, [{"question_id": 1000}], ("ANLS",), only=True)
