from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lmms_eval_stability.bootstrap import cluster_rate
from lmms_eval_stability.categories import NO_CATEGORY, by_category, category_table, labeller, labels_of, read_labels
from lmms_eval_stability.divergence import diverge, mcnemar_exact, wilson
from tests.study.statistics.builders import pairs


def pope(doc_id: int, question_id: Any) -> dict[str, Any]:
    return {"doc_id": doc_id, "pope_accuracy": {"question_id": question_id, "score": 1.0, "prediction": "yes"}}


MMBENCH = {"index": 2_000_241, "category": "attribute_recognition", "L2-category": "finegrained_perception"}
PERTURBATION = {"method": "gaussian_noise", "severity": 3, "seed": 17, "changed": True, "output_sha": "ab"}


@pytest.mark.parametrize(
    ("task", "row", "labels"),
    [
        ("pope", pope(0, "1"), {"split": "adversarial", "cluster": "0"}),
        ("pope", pope(2999, "3000"), {"split": "adversarial", "cluster": "499"}),
        ("pope", pope(3005, "6"), {"split": "popular", "cluster": "0"}),
        ("pope", pope(6006, 7), {"split": "random", "cluster": "1"}),
        ("pope", pope(3005, "7"), {}),  # not the data set's order: nothing is guessed
        ("pope", pope(9000, "1"), {"cluster": "0"}),
        ("pope_pop", pope(13, "14"), {"split": "popular", "cluster": "2"}),
        ("pope_pop", pope(13, "99"), {"split": "popular"}),
        ("pope", {"doc_id": 3, "pope_accuracy": 1.0}, {}),
        (
            "mmmu_val",
            {"mmmu_acc": {"id": "validation_Art_1", "subdomain": "Art", "question_type": "open"}},
            {"subject": "Art", "question type": "open"},
        ),
        (
            "mmbench_en_dev_static",
            {"gpt_eval_score": MMBENCH},
            {"ability": "finegrained_perception", "category": "attribute_recognition", "cluster": "241"},
        ),
        ("mmbench_cn_cc", {"gpt_eval_score": {"index": 7, "category": "food"}}, {"category": "food", "cluster": "7"}),
        (
            "shapes_vqa",
            {"shapes_record": {"kind": "count", "image_id": "scene_4"}},
            {"kind": "count", "cluster": "scene_4"},
        ),
        ("vqa_rad_test", {"vqa_rad_record": {"kind": "open", "image_id": "ab12"}}, {"kind": "open", "cluster": "ab12"}),
        (
            "llava_med_conversation",
            {"llava_med_record": {"kind": "description", "domain": "ct_scan", "image_id": "PMC1"}},
            {"kind": "description", "domain": "ct_scan", "cluster": "PMC1"},
        ),
        (
            "shapes_vqa_image_perturbed",
            {"shapes_record": {"kind": "count", "image_id": 4}, "perturbation": PERTURBATION},
            {
                "kind": "count",
                "perturbed input": "changed",
                "perturbation": "gaussian_noise",
                "severity": "3",
                "perturbation level": "gaussian_noise 3",
                "cluster": "4",
            },
        ),
        ("gqa_text_perturbed", {"perturbation": {"changed": False}}, {"perturbed input": "unchanged"}),
        ("gqa_text_perturbed", {"perturbation": {"changed": None}}, {}),
        ("gqa", {"token_counts": [{"image_fingerprint": "0f"}]}, {"image": "0f"}),
        ("gqa", {"token_counts": [None]}, {}),
        ("gqa", {"token_counts": [{"image_fingerprint": 7}]}, {}),
        ("gqa", {"exact_match": 1.0}, {}),
        ("popequiz", pope(0, "1"), {}),
        ("shapes_vqa", {"shapes_record": {"kind": None, "image_id": ["x"]}}, {}),
        ("gqa_image_perturbed", {"perturbation": "noise"}, {}),
    ],
)
def test_labels_of_a_line(task: str, row: dict[str, Any], labels: dict[str, str]) -> None:
    assert labels_of(task, row) == labels


def test_lines_are_as_lmms_eval_writes_them() -> None:
    # the functions that make the logged dicts, not a copy of their keys
    from lmms_eval.tasks.mmbench.en_utils import mmbench_process_results
    from lmms_eval.tasks.mmmu.utils import mmmu_process_results
    from lmms_eval.tasks.pope.utils import pope_process_results

    from lmms_eval_stability.tasks.shapes_vqa.utils import process_results as shapes_results
    from lmms_eval_stability.tasks.vqa_rad.utils import process_results as rad_results

    logged = pope_process_results({"question_id": "6", "answer": "yes"}, ["Yes"])
    assert labels_of("pope", {"doc_id": 3005, **logged}) == {"split": "popular", "cluster": "0"}
    doc: dict[str, Any] = {"id": "validation_Art_Theory_12", "question_type": "open", "answer": "3"}
    assert labels_of("mmmu_val", mmmu_process_results(doc, ["3"]))["subject"] == "Art_Theory"
    doc = dict.fromkeys(["question", "answer", "hint", "source", "split"], "x") | MMBENCH
    assert labels_of("mmbench_en_dev", mmbench_process_results(doc, ["A"])) == {
        "ability": "finegrained_perception",
        "category": "attribute_recognition",
        "cluster": "241",
    }
    doc = {"question_id": "q", "image_id": "i", "kind": "colour", "answer": "red"}
    assert labels_of("shapes_vqa", shapes_results(doc, ["red"])) == {"kind": "colour", "cluster": "i"}
    doc = {"question_id": "q", "image_id": "i", "split": "test", "answer": "yes"}
    assert labels_of("vqa_rad", rad_results(doc, ["no"])) == {"kind": "closed", "cluster": "i"}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_labels_of_a_log(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"doc_id": 5, "shapes_record": {"kind": "count", "image_id": "b"}},
        "not json",
        {"doc_id": 2, "shapes_record": {"kind": "colour", "image_id": "a"}},
        {"doc_id": 5, "shapes_record": {"kind": "other", "image_id": "z"}},
        {"doc_id": "x", "shapes_record": {"kind": "other"}},
        {"doc_id": 7},
    ]
    labels = read_labels(write(tmp_path / "s.jsonl", rows), "shapes_vqa")
    assert labels.index.tolist() == [5, 2, 7]
    assert labels["kind"].tolist() == ["count", "colour", None]
    assert labels["cluster"].tolist() == ["b", "a", None]
    assert list(labels) == ["kind", "cluster"]
    assert read_labels(write(tmp_path / "e.jsonl", []), "shapes_vqa").shape == (0, 0)
    assert read_labels(write(tmp_path / "g.jsonl", [{"doc_id": 1}]), "gqa").shape == (1, 0)


PAIRS = pairs([1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0], docs=[2, 3, 5, 8, 9, 11])


def test_numbers_of_categories_by_hand() -> None:
    kinds = pd.Series(["count", "colour", "count", "colour", "count"], index=[3, 2, 5, 8, 9])
    rows = by_category(PAIRS, kinds, "kind", "base", "fastv")
    assert [row.category for row in rows] == ["colour", "count", NO_CATEGORY]
    assert [row.row.n for row in rows] == [2, 3, 1]
    colour, count, none = (row.row for row in rows)
    assert colour.ndr == wilson(2, 2)
    assert (colour.drop, colour.mcnemar_p) == (1.0, mcnemar_exact(2, 0))
    assert (count.pdr, count.ndr, count.drop) == (wilson(1, 3), wilson(0, 3), pytest.approx(-1 / 3))
    assert none.dr == wilson(0, 1)
    table = category_table(rows)
    assert table.columns.tolist()[:2] == ["dimension", "category"]
    assert table["ndr"].tolist() == [1.0, 0.0, 0.0]


def test_categories_add_up_to_the_whole() -> None:
    whole = diverge(PAIRS, "base", "fastv")
    rows = [row.row for row in by_category(PAIRS, pd.Series({2: "a", 3: "b", 5: "a"}), "kind", "base", "fastv")]
    for name in ("dr", "ndr", "pdr"):
        assert sum(row.n * getattr(row, name).value for row in rows) == pytest.approx(6 * getattr(whole, name).value)
    assert sum(row.n * row.drop for row in rows) == pytest.approx(6 * whole.drop)


def test_severities_are_in_order_of_number() -> None:
    severities = pd.Series(["10", "2", None, "1", "x", "2"], index=[2, 3, 5, 8, 9, 11])
    rows = by_category(PAIRS, severities, "severity", "base", "run")
    assert [row.category for row in rows] == ["1", "2", "10", "x", NO_CATEGORY]


def test_clusters_of_a_log_go_into_the_bootstrap(tmp_path: Path) -> None:
    rows = [{"doc_id": doc, "shapes_record": {"kind": "k", "image_id": doc // 5}} for doc in PAIRS.frame["doc_id"]]
    labels = read_labels(write(tmp_path / "s.jsonl", rows[::-1]), "shapes_vqa")
    rate = cluster_rate(PAIRS.frame["changed"], labels["cluster"].reindex(PAIRS.frame["doc_id"]))
    assert (rate.value, rate.clusters) == (0.5, 3)


def test_equal_records_of_other_types_are_told_apart() -> None:
    find = labeller("vqav2_val_image_perturbed", "vqav2_val")
    records: list[Any] = [
        {"method": "fog", "severity": 1, "changed": True},
        {"method": "fog", "severity": True, "changed": True},
        {"method": "fog", "severity": 1, "changed": 1},
        {"method": "fog", "severity": 1.0, "changed": True},
        {"method": ["fog"], "severity": 1, "changed": True},
        {"method": "fog"},
        "fog",
        None,
    ]
    for _ in range(2):
        for record in records:
            row = {"perturbation": record}
            assert find(row) == labeller("vqav2_val_image_perturbed", "vqav2_val")(row), record
    assert find({"perturbation": records[0]})["perturbation level"] == "fog 1"
    assert "severity" not in find({"perturbation": records[1]})
    assert "perturbed input" not in find({"perturbation": records[2]})
