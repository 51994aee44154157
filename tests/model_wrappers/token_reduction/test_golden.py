"""Every golden vector of the token-reduction methods: outputs of their official code, given its inputs.

The folder is ``tests/golden``, or the one that the environment variable ``LMMS_EVAL_STABILITY_GOLDEN`` names. All files
are found by their prefix and tell their own shapes and parameters, so further cases need no change here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.golden_cases import FOLDER_VARIABLE, OWN_FOLDER, SUBFOLDERS, golden_files, golden_folder
from tests.model_wrappers.token_reduction.golden_runners import RUNNERS, run_file

pytestmark = pytest.mark.any_transformers

FILES = golden_files("token_reduction")
OWN_FILES = sorted((OWN_FOLDER / "token_reduction").glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_official_vectors(path: Path):
    run_file(path)


def test_no_vector_lies_where_nothing_runs_it():
    assert FILES, f"no .npz file in {golden_folder() / 'token_reduction'}"
    stray = [
        str(path)
        for path in golden_folder().rglob("*.npz")
        if path.parent not in [golden_folder() / name for name in SUBFOLDERS]
    ]
    assert not stray


def test_this_project_has_vectors_of_every_method():
    assert {prefix for prefix in RUNNERS if any(path.name.startswith(prefix) for path in OWN_FILES)} == set(RUNNERS)
    assert len(OWN_FILES) >= 24


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, keys in {
            "fastv_small": "num_keep keep_indices hidden_out position_ids",
            "pyramiddrop_small": "kept_rows_stage0 kept_rows_stage2 hidden_out_stage1 position_ids_out_stage2",
            "sparsevlm_small": "rater_scores rater_idx_rel_text rater_rows_abs_1 relation_0 mask_0 mask_2 cluster_num_1"
            " recycled_idx_rel_pruned_1 recycled_tokens_0 merged_tokens_2 v_token_num_1 hidden_next_2 position_ids_0",
            "sparsevlm_cluster_a": "merged",
            "sparsevlm_rank_v1_a": "rank relation mask",
            "visionzip_small": "kept_indices_unsorted kept_indices_sorted output_tokens",
            "hired_llava15_odd": "mask kept kept_indices",
            "hired_small_grid": "layer0_cls_attn layer22_cls_attn masks kept_per_partition packed_features",
        }.items()
        for key in keys.split()
    ],
)
def test_every_output_is_compared(name: str, key: str, tmp_path: Path):
    with np.load(OWN_FOLDER / "token_reduction" / f"{name}.npz") as arrays:
        case = dict(arrays)
    value = case[key].copy()
    last = (-1,) * value.ndim
    value[last] = ~value[last] if value.dtype == bool else value[last] + (1 if value.dtype.kind == "i" else 1e-3)
    np.savez(tmp_path / f"{name}.npz", **{**case, key: value})
    with pytest.raises(AssertionError):
        run_file(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    ("name", "keys", "match"),
    [
        ("tokenswap_small", {"mask": [True]}, "tokenswap_small.npz: no golden test runs files of this name"),
        ("fastv_other", {"mask": [True]}, "fastv_other.npz: has none of the keys attn_last_row"),
        ("fastv_cut", {"attn_last_row": np.ones((1, 2, 9))}, "fastv_cut.npz: has no 'image_start'"),
    ],
)
def test_a_file_that_nothing_can_run_fails_by_name(name: str, keys: dict[str, object], match: str, tmp_path: Path):
    np.savez(tmp_path / f"{name}.npz", **keys)
    with pytest.raises(AssertionError, match=match):
        run_file(tmp_path / f"{name}.npz")


def test_the_folder_is_the_one_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"LMMS_EVAL_STABILITY_GOLDEN names '.*nowhere', which is not a folder"):
        golden_files("token_reduction")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="none of the sub-folders token_reduction, perturbations"):
        golden_files("token_reduction")
    (tmp_path / "token_reduction").mkdir()
    assert golden_files("token_reduction") == []
    (tmp_path / "token_reduction" / "hired_more.npz").touch()
    assert [path.name for path in golden_files("token_reduction")] == ["hired_more.npz"]
    assert golden_files("token_reduction", "fastv_") == []
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert golden_files("token_reduction") == OWN_FILES
