"""LVPruning at inference: which tokens its modules keep, which pruner fits which base, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from lmms_eval_stability.demo import PRUNER_DIR
from lmms_eval_stability.model_wrappers.errors import WrapperError
from lmms_eval_stability.model_wrappers.token_reduction import lvpruning
from lmms_eval_stability.model_wrappers.token_reduction.errors import InvalidParameterError, UnsupportedModelError
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning import WrongBaseError
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_base import base_config, files_digest, weights_digest
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import (
    CARD,
    WEIGHTS,
    PrunerCard,
    PrunerDesign,
    PrunerFileError,
    load_pruner,
    read_card,
    save_pruner,
)
from lmms_eval_stability.model_wrappers.token_reduction.show import load_any
from tests.model_wrappers.token_reduction import lvpruning_oracle
from tests.model_wrappers.token_reduction.conftest import QUESTION, Tiny
from tests.model_wrappers.token_reduction.lvpruning_untrained import DESIGN, LVPruning, draw
from tests.tiny_models import build_tiny

CLOSE = {"atol": 5e-4, "rtol": 1e-4}


@pytest.fixture
def folder(llava: Tiny, tmp_path: Path) -> Path:
    """A pruner for the tiny LLaVA."""
    base = {"name": "tiny", "config": base_config(llava.model.config), "sha256": weights_digest(llava.model)}
    save_pruner(tmp_path, draw(), PrunerCard(DESIGN, base, {}))
    return tmp_path


@pytest.mark.parametrize("text", ["all", "question"])
@pytest.mark.parametrize(("keep", "shares"), [("auto", (0.6, 0.4, 0.2)), ("1-1-0.2", (1, 1, 0.2)), (0.5, (0.5,) * 3)])
def test_modules_add_up_and_read_the_text_they_are_told_to(tiny: Tiny, text: str, keep: Any, shares: tuple[float, ...]):
    method, inputs = LVPruning(keep=keep, text=text), tiny.one()
    n, query = int(tiny.visual(inputs).sum()), inputs["input_ids"].shape[1] - 1
    counts = [round(n * share) for share in shares]
    with method.attach(tiny.model, tiny.family) as session:
        logits = tiny.logits(inputs)[0, -1]
    expected = lvpruning_oracle.run(tiny, inputs, draw(), counts, query, text)
    torch.testing.assert_close(logits, expected.logits[-1], **CLOSE)
    assert session.rows[0].visual_tokens == (n, *counts)


def test_which_text_is_read_matters(llava: Tiny):
    kept = []
    for text in ("all", "question"):
        with LVPruning(text=text).attach(llava.model, llava.family) as session:
            session.tracing = True
            llava.logits(llava.one())
        kept.append(session.traces[0][-1].kept)
    assert kept[0] != kept[1]


def test_the_question_decides(llava: Tiny):
    kept = set()
    for question in (QUESTION, "Is there a dog in the picture?", "How many people are there?"):
        inputs = llava.inputs((question, [(84, 56)]))
        inputs["pixel_values"] = llava.one()["pixel_values"]
        with LVPruning().attach(llava.model, llava.family) as session:
            session.tracing = True
            llava.logits(inputs)
        kept.add(session.traces[0][-1].kept)
    assert len(kept) > 1


def test_a_threshold_keeps_what_reaches_it(llava: Tiny):
    inputs = llava.inputs((QUESTION, [(84, 56)]), ("Is there a dog in the picture?", [(56, 140)]), ("Yes?", []))
    plain = llava.logits(inputs)
    counts = {}
    for cutoff in (0, 0.3, 0.7, 1):
        with LVPruning(decide="threshold", cutoff=cutoff).attach(llava.model, llava.family) as session:
            logits = llava.logits(inputs)
        counts[cutoff] = [row.visual_tokens for row in session.rows]
        assert torch.equal(logits, plain) == (cutoff == 0)
    assert counts[0] == [(16,) * 4, (16,) * 4, (0,) * 4]
    assert all(row[-1] < 16 for row in counts[0.7][:2])
    assert sum(map(sum, counts[0.7])) < sum(map(sum, counts[0.3]))
    assert counts[1] == [(16, 1, 1, 1), (16, 1, 1, 1), (0,) * 4]


@pytest.mark.parametrize(
    "parameters",
    [
        {"pruner": ""},
        {"pruner": 3},
        {"decide": "best"},
        {"cutoff": 0.4},
        {"decide": "threshold", "cutoff": 1.2},
        {"decide": "threshold", "cutoff": True},
        {"decide": "threshold", "keep": 0.5},
        {"keep": 0},
        {"keep": "0.2-0.5-0.1"},
        {"keep": 1.5},
        {"any_base": "yes"},
    ],
    ids=str,
)
def test_bad_parameters(parameters: dict[str, Any]):
    with pytest.raises(InvalidParameterError, match="LVPruning"):
        lvpruning.LVPruning(**parameters)


def test_as_many_shares_as_stages(llava: Tiny, folder: Path):
    method = lvpruning.LVPruning(str(folder), keep="0.5-0.1")
    with pytest.raises(InvalidParameterError, match=r"2 shares, but the pruner .* acts before layers 2-4-5"):
        method.attach(llava.model, llava.family).__enter__()


def test_a_pruner_serves_its_base_alone(llava: Tiny, load: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory):
    method = lvpruning.LVPruning(str(folder))
    with method.attach(llava.model, llava.family) as session:
        llava.logits(llava.one())
    assert session.rows[0].visual_tokens == (16, 10, 6, 3)
    elsewhere = build_tiny("llava", tmp_path_factory.mktemp("other"), seed=1)
    other = AutoModelForImageTextToText.from_pretrained(elsewhere).eval()
    with pytest.raises(WrongBaseError, match=rf"trained for 'tiny' with weights .* '{elsewhere}'.*any_base=True"):
        method.attach(other, llava.family).__enter__()
    with lvpruning.LVPruning(str(folder), any_base=True).attach(other, llava.family):
        pass
    following = load("llava_next")
    with pytest.raises(WrongBaseError, match=r"other sizes \(model_type"):
        lvpruning.LVPruning(str(folder), any_base=True).attach(following.model, following.family).__enter__()


def test_the_digest_is_of_the_stored_weights(llava: Tiny, tmp_path: Path):
    name = llava.model.config._name_or_path
    half = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.bfloat16)
    assert weights_digest(half) == weights_digest(llava.model)
    llava.model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert files_digest(shards) == weights_digest(llava.model)
    tensors = load_file(shards[1])
    changed = next(iter(tensors))
    tensors[changed].view(-1)[-1] += 1
    save_file(tensors, shards[1])
    assert files_digest(shards) != weights_digest(llava.model)


def test_large_tensors_are_read_in_pieces_from_end_to_end(tmp_path: Path):
    weights = torch.zeros(3 << 20, dtype=torch.uint8)
    digests = set()
    for place in (None, 0, (3 << 20) - 1):
        tensor = weights.clone()
        if place is not None:
            tensor[place] = 1
        save_file({"weights": tensor}, tmp_path / "model.safetensors")
        digests.add(files_digest([tmp_path / "model.safetensors"]))
    assert len(digests) == 3


def test_a_model_of_no_checkpoint_is_refused(llava: Tiny):
    model = copy.deepcopy(llava.model)
    model.config._name_or_path = ""
    with pytest.raises(UnsupportedModelError, match="no safetensors"):
        weights_digest(model)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: shutil.rmtree(f), "there is no pruner at"),
        (lambda f: (f / CARD).write_text("{"), "is not JSON"),
        (lambda f: (f / CARD).write_text('{"method": "lvpruning", "format": 9}'), "not a pruner of format 1"),
        (lambda f: (f / CARD).write_text('{"method": "lvpruning", "format": 1}'), "lacks or misspells a part"),
        (lambda f: _edit(f, "layers", [4, 2, 5]), "layers must ascend"),
        (lambda f: _edit(f, "keep", [0.6, 0.4]), "one share per layer"),
        (lambda f: _edit(f, "heads", 5), "not a multiple of 5 heads"),
        (lambda f: _edit(f, "width", 64), "cannot be loaded.*size mismatch"),
        (lambda f: (f / WEIGHTS).unlink(), f"no {WEIGHTS}"),
        (lambda f: (f / WEIGHTS).write_bytes(b"weights"), "cannot be loaded"),
    ],
)
def test_damaged_pruners(folder: Path, damage: Any, match: str):
    load_pruner(folder)
    damage(folder)
    with pytest.raises(PrunerFileError, match=match):
        load_pruner(folder)


def _edit(folder: Path, key: str, value: Any) -> None:
    content = json.loads((folder / CARD).read_text())
    content["design"][key] = value
    (folder / CARD).write_text(json.dumps(content))


def test_layers_that_the_model_does_not_have(llava: Tiny, folder: Path):
    _edit(folder, "layers", [2, 4, 8])
    with pytest.raises(InvalidParameterError, match="before layer 8; the language model has 8 layers"):
        lvpruning.LVPruning(str(folder)).attach(llava.model, llava.family).__enter__()


def test_a_card_says_what_was_trained(folder: Path):
    card = read_card(folder)
    assert card.design == DESIGN
    assert PrunerDesign(**vars(card.design)) == card.design
    assert card.base["name"] == "tiny"


def test_the_shipped_pruner_is_of_the_demo_model_and_leaves_it_alone():
    assert sum(path.stat().st_size for path in PRUNER_DIR.iterdir()) <= 1 << 20
    loaded = load_any("demo")
    method = lvpruning.LVPruning()
    assert method.card.base["sha256"] == weights_digest(loaded.model)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    demo = Tiny("llava", loaded.model, loaded.processor, loaded.family)
    with method.attach(loaded.model, loaded.family) as session:
        demo.generate(demo.one(96, 96), new=2)
    layers, keep = method.card.design.layers, method.card.design.keep
    assert session.rows[0].layers == (0, *layers)
    assert session.rows[0].visual_tokens == (144, *(round(144 * share) for share in keep))
    after = loaded.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_mistyped_pruner_is_an_error_of_the_user():
    with pytest.raises(WrapperError, match=r"train-pruner, or give pruner=demo"):
        _ = lvpruning.LVPruning("no/such/folder").card
