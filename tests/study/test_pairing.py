from __future__ import annotations

import pytest

from lmms_eval_stability.errors import OptionError, PairingError
from lmms_eval_stability.pairing import PairedSamples, pair_samples
from lmms_eval_stability.problems import KINDS, Problem, describe, parse_accept, show
from lmms_eval_stability.runs import load_run
from lmms_eval_stability.verdicts import adapter_for, judge

from .conftest import BASE, FASTV, Row, WriteRun, sample


@pytest.fixture
def pair(write_run: WriteRun):
    """pair(rows of the baseline, rows of the run, accept) -> PairedSamples."""

    def join(before: list[Row], after: list[Row], accept: tuple[str, ...] = ()) -> PairedSamples:
        tables = [
            judge(load_run(write_run(name, {"gqa": rows})).samples("gqa"), adapter_for("gqa"))
            for name, rows in (("base", before), ("run", after))
        ]
        return pair_samples(*tables, accept)

    return join


def kinds(error: PairingError) -> dict[str, int]:
    return {problem.kind: problem.count for problem in error.problems}


def test_pairs_row_by_row(pair) -> None:
    pairs = pair(BASE, list(reversed(FASTV)))
    frame = pairs.frame
    assert frame["doc_id"].tolist() == [0, 1, 2, 3, 4]
    assert frame["target"].tolist() == ["t0", "t1", "t2", "t3", "t4"]
    assert frame["prediction_baseline"].tolist() == ["red", "blue", "two", "yes", "no"]
    assert frame["prediction_run"].tolist() == ["red", "green", "2", "yes", "maybe"]
    assert frame["changed"].tolist() == [False, True, True, False, True]
    assert frame["flip"].tolist() == ["", "negative", "positive", "", ""]
    assert (pairs.complete, pairs.mean_baseline, pairs.mean_run) == (True, 0.6, 0.6)


def test_every_problem_is_found_at_once(pair) -> None:
    before = [*BASE, sample(9, "x", 1.0)]
    after = [
        sample(0, "", 0.0),
        sample(1, "a", 1.0, target="another"),
        sample(2, "b", 1.0, input="another prompt"),
        sample(3, "c", None),
        sample(4, "", 0.0, token_counts=[{"error": "boom"}]),
        sample(4, "d", 0.0),
    ]
    with pytest.raises(PairingError) as caught:
        pair(before, after)
    assert kinds(caught.value) == dict.fromkeys(
        ("unpaired", "duplicate", "empty", "failed", "unscored", "input", "target"), 1
    )


@pytest.mark.parametrize(
    ("kind", "after", "kept"),
    [
        ("unpaired", FASTV[:3], [0, 1, 2]),
        ("duplicate", [*FASTV, sample(0, "other", 0.0)], [0, 1, 2, 3, 4]),
        ("empty", [*FASTV[:4], sample(4, " ", 0.0)], [0, 1, 2, 3, 4]),
        ("failed", [*FASTV[:4], sample(4, "x", 0.0, token_counts=[{"error": "boom"}])], [0, 1, 2, 3]),
        ("unscored", [*FASTV[:4], sample(4, "x", float("nan"))], [0, 1, 2, 3]),
        ("input", [*FASTV[:4], sample(4, "x", 0.0, input="other")], [0, 1, 2, 3, 4]),
        ("target", [*FASTV[:4], sample(4, "x", 0.0, target="other")], [0, 1, 2, 3, 4]),
    ],
)
def test_each_problem_is_refused_and_can_be_accepted_by_its_name(
    pair, kind: str, after: list[Row], kept: list[int]
) -> None:
    with pytest.raises(PairingError) as caught:
        pair(BASE, after)
    assert list(kinds(caught.value)) == [kind]
    assert f"--accept {kind}: {KINDS[kind].accepted}" in str(caught.value)
    pairs = pair(BASE, after, (kind,))
    assert pairs.frame["doc_id"].tolist() == kept
    assert [(p.kind, p.count) for p in pairs.problems] == [(kind, kinds(caught.value)[kind])]
    assert pairs.complete == (len(kept) == 5)


def test_fingerprints_are_compared_where_both_logs_have_them(pair) -> None:
    def rows(*prints: str | None) -> list[Row]:
        return [
            sample(i, "a", 1.0, token_counts=[{"input_fingerprint": p} if p else None]) for i, p in enumerate(prints)
        ]

    pairs = pair(rows("aa", "bb", None), rows("aa", "bb", "cc"))
    assert (pairs.fingerprints_compared, pairs.fingerprints_equal) == (2, 2)
    with pytest.raises(PairingError, match=r"1 documents whose real inputs \(prompt and pixels\) differ: doc 1"):
        pair(rows("aa", "bb", "cc"), rows("aa", "xx", "cc"))
    accepted = pair(rows("aa", "bb", "cc"), rows("aa", "xx", "cc"), ("fingerprint",))
    assert (accepted.fingerprints_compared, accepted.fingerprints_equal) == (3, 2)
    unscored = [{**row, "exact_match": None} if row["doc_id"] == 1 else row for row in rows("aa", "xx", "cc")]
    left = pair(rows("aa", "bb", "cc"), unscored, ("fingerprint", "unscored"))
    assert (left.fingerprints_compared, left.fingerprints_equal) == (2, 2)


def test_an_answer_that_is_empty_in_both_runs_is_still_empty(pair) -> None:
    rows = [*BASE[:4], sample(4, "", 0.0)]
    with pytest.raises(PairingError) as caught:
        pair(rows, rows)
    assert [p.count for p in caught.value.problems if p.kind == "empty"] == [1, 1]


def test_an_appended_second_run_is_recognised(pair) -> None:
    with pytest.raises(PairingError, match="5 lines that repeat a document: every document is there 2 times"):
        pair(BASE, FASTV + FASTV)


def test_of_duplicates_the_first_line_counts(pair) -> None:
    frame = pair(BASE, [sample(1, "first", 1.0), *FASTV], ("duplicate",)).frame
    assert frame["prediction_run"].tolist()[1] == "first"


def test_a_difference_deep_in_a_long_prompt_is_shown(pair) -> None:
    prompt = "word " * 100
    with pytest.raises(PairingError, match=r"doc 0: '.{0,20}ONE' against '.{0,20}TWO'"):
        pair([sample(0, "a", 1.0, input=prompt + "ONE")], [sample(0, "a", 1.0, input=prompt + "TWO")])


def test_the_first_three_prompts_that_differ_are_shown_line_by_line(pair) -> None:
    def rows(instruction: str) -> list[Row]:
        return [sample(i, "a", 1.0, input=f"Look.\nQuestion {i}?\n{instruction}") for i in range(5)]

    with pytest.raises(PairingError) as caught:
        pair(rows("Answer in one word."), rows("Answer briefly.\x1b[2J\nNow."))
    text = str(caught.value)
    for doc in range(3):
        assert (
            f"      doc {doc}\n        - 'Answer in one word.'\n        + 'Answer briefly.\\x1b[2J'\n        + 'Now.'\n"
            in text
        )
    assert "doc 3\n" not in text
    assert "\x1b" not in text


def test_only_the_first_lines_of_a_long_difference_are_shown(pair) -> None:
    one, other = ("\n".join(f"{word} {i}" for i in range(20)) for word in ("left", "right"))
    with pytest.raises(PairingError, match="and 32 lines more"):
        pair([sample(0, "a", 1.0, input=one)], [sample(0, "a", 1.0, input=other)])


def test_no_samples_is_accepted_by_nothing(pair) -> None:
    with pytest.raises(PairingError, match="no option accepts this: run the task again with --log_samples"):
        pair([], [], tuple(KINDS))


def test_accept_takes_names_repeated_or_with_commas() -> None:
    assert parse_accept(["unpaired, empty", "failed"]) == {"unpaired", "empty", "failed"}
    with pytest.raises(OptionError, match="--accept does not know al, nothing; known are unpaired, duplicate"):
        parse_accept(["nothing", "al", "empty"])


def test_messages_escape_what_a_terminal_would_obey() -> None:
    assert "\x1b" not in show("\x1b[31mred\nnext")
    assert len(show("x" * 1000)) == 62


def test_the_whole_error_names_all_options_at_once() -> None:
    text = describe([Problem("empty", "gqa", "f", 5, ("doc 1", "doc 2")), Problem("unpaired", "gqa", "g", 1)])
    assert "task gqa, f: 5 empty answers: doc 1; doc 2, ..." in text
    assert "accept all of these with --accept unpaired,empty" in text
