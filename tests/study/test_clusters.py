"""Intervals of a comparison whose logs say which samples share an image."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from click.testing import Result

from lmms_eval_stability.bootstrap import cluster_rate
from lmms_eval_stability.clusters import find_clusters, with_clusters
from lmms_eval_stability.divergence import diverge, wilson

from .conftest import Row, WriteRun, sample
from .statistics.builders import pairs

Compare = Callable[..., Result]


def log(answers: str, images: str, **more: Any) -> list[Row]:
    """Lines whose images are letters, "-" for none; an answer "y" is right."""
    rows = [sample(i, answer, float(answer == "y"), **more) for i, answer in enumerate(answers)]
    for row, image in zip(rows, images, strict=True):
        row["token_counts"] = [{"image_fingerprint": image * 32} if image != "-" else {"output_tokens": 1}]
    return rows


def test_fingerprints_cluster_the_intervals(write_run: WriteRun, run_compare: Compare) -> None:
    images = "aaaabbbbccccddddeeee"
    before, after = "y" * 20, "n" * 4 + "y" * 4 + "n" * 4 + "y" * 8
    base = write_run("base", {"gqa": log(before, images)})
    run = write_run("run", {"gqa": log(after, images)}, model="x")
    (record,) = json.loads(run_compare(base, run, "--format", "json").stdout)["comparisons"]
    expected = cluster_rate([answer == "n" for answer in after], list(images))
    assert [record[key] for key in ("ndr", "ndr_low", "ndr_high")] == [expected.value, expected.low, expected.high]
    assert (record["dr_low"], record["conditional_ndr_high"]) == (expected.low, expected.high)
    assert record["ndr_high"] - record["ndr_low"] > wilson(8, 20).high - wilson(8, 20).low
    assert (record["intervals"], record["clusters"]) == ("cluster bootstrap", 5)
    assert (record["clustered_by"], record["design_effect"]) == ("image fingerprint", pytest.approx(4.75))
    said = "95 % intervals: cluster bootstrap (10,000 replicates, seed 0) over 5 clusters of 20 by image fingerprint"
    for layout in ("table", "markdown"):
        assert said in run_compare(base, run, "--format", layout).stdout
    assert run_compare(base, run).stdout == run_compare(base, run).stdout


def test_images_of_their_own_and_no_images_leave_wilson(write_run: WriteRun, run_compare: Compare) -> None:
    for i, images in enumerate(("abcd", "----", "a-b-")):
        base = write_run(f"base{i}", {"gqa": log("yyyy", images)})
        run = write_run(f"run{i}", {"gqa": log("ynyy", images)}, model="x")
        (record,) = json.loads(run_compare(base, run, "--format", "json").stdout)["comparisons"]
        assert (record["intervals"], record["clusters"], record["design_effect"]) == ("wilson", 0, None)
        assert (record["ndr_low"], record["ndr_high"]) == (wilson(1, 4).low, wilson(1, 4).high)
        assert "95 % intervals: Wilson, samples taken as independent" in run_compare(base, run).stdout


def test_tasks_say_for_themselves_how_their_intervals_were_made(write_run: WriteRun, run_compare: Compare) -> None:
    base = write_run("base", {"gqa": log("yyyy", "aabb"), "ok_vqa": log("yyyy", "----")})
    run = write_run("run", {"gqa": log("ynyy", "aabb"), "ok_vqa": log("yyny", "----")}, model="x")
    out = run_compare(base, run).stdout
    assert "over 2 clusters of 4 by image fingerprint (gqa); Wilson, samples taken as independent (ok_vqa)" in out
    records = json.loads(run_compare(base, run, "--format", "json").stdout)["comparisons"]
    assert [one["intervals"] for one in records] == ["cluster bootstrap", "wilson", ""]
    assert [one["clusters"] for one in records] == [2, 0, 0]


def test_the_coarser_source_counts() -> None:
    docs = pd.Index([3, 5, 7, 9], name="doc_id")
    noisy = pd.DataFrame({"cluster": list("aabb"), "image": list("wxyz")}, index=docs)
    found = find_clusters(noisy)
    assert found is not None
    assert (found.source, found.codes.tolist(), found.codes.index.tolist()) == ("record", [0, 0, 1, 1], [3, 5, 7, 9])
    found = find_clusters(noisy.assign(image="one"))
    assert found is not None
    assert (found.source, found.codes.nunique()) == ("image fingerprint", 1)
    found = find_clusters(pd.DataFrame({"image": ["a", None, "a", None]}, index=docs))
    assert found is not None
    assert found.codes.nunique() == 3
    assert find_clusters(None) is find_clusters(noisy[[]]) is find_clusters(noisy[["image"]]) is None


def test_documents_that_are_not_paired_are_no_clusters() -> None:
    docs = pd.Index(range(6), name="doc_id")
    clusters = find_clusters(pd.DataFrame({"image": list("aabbcc")}, index=docs))
    part = pairs([1, 1, 1], [1, 0, 1], docs=[1, 3, 5])
    row = diverge(part, "base", "run")
    assert with_clusters(row, part, clusters) == row
    part = pairs([1, 1, 1], [1, 0, 1], docs=[1, 4, 5])
    assert with_clusters(diverge(part, "base", "run"), part, clusters).clusters == 2


def test_records_and_reruns_know_their_clusters(write_run: WriteRun, run_compare: Compare) -> None:
    def rows(answers: str) -> list[Row]:
        made = log(answers, "-" * len(answers))
        return [{**row, "shapes_record": {"image_id": f"i{n // 2}", "kind": "k"}} for n, row in enumerate(made)]

    base = write_run("base", {"shapes_vqa": rows("yyyyyyyy")})
    run = write_run("run", {"shapes_vqa": rows("nnyyyyyy")}, model="x")
    # the re-run has documents that the run lacks, and the run some that the re-run lacks
    short = write_run("short", {"shapes_vqa": rows("nnyyyyyy")[1:]}, model="x")
    again = write_run("again", {"shapes_vqa": rows("yyyyyynn")[:7]})
    (record,) = json.loads(run_compare(base, run, "--format", "json").stdout)["comparisons"]
    assert (record["clusters"], record["clustered_by"]) == (4, "record")
    result = run_compare(base, short, "--rerun", again, "--accept", "unpaired", "--format", "json")
    (record,) = json.loads(result.stdout)["comparisons"]
    assert (record["n"], record["rerun_n"], record["excess_dr"]) == (7, 7, 0.0)
    assert record["excess_dr_low"] < 0 < record["excess_dr_high"]
