"""Training a pruner: masks are removal by index, the base stays as it is, a training goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner

from lmms_eval_stability.cli import main
from lmms_eval_stability.model_wrappers.loading import LoadedModel
from lmms_eval_stability.model_wrappers.pruner_training.data import Order, ShapesSource, collate, read_file
from lmms_eval_stability.model_wrappers.pruner_training.errors import (
    PrunerFolderError,
    TrainingDataError,
    TrainingSettingsError,
)
from lmms_eval_stability.model_wrappers.pruner_training.folder import TrainingFolder
from lmms_eval_stability.model_wrappers.pruner_training.loop import Micro, Trainer
from lmms_eval_stability.model_wrappers.pruner_training.losses import LossWeights, answer_losses
from lmms_eval_stability.model_wrappers.pruner_training.masking import Decision
from lmms_eval_stability.model_wrappers.pruner_training.settings import TrainingSettings
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning import LVPruning
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning_modules import (
    load_pruner,
    read_card,
    save_pruner,
    spread_noise,
)
from lmms_eval_stability.model_wrappers.token_reduction.show import load_any
from tests.model_wrappers.token_reduction.conftest import Tiny
from tests.model_wrappers.token_reduction.lvpruning_untrained import draw
from tests.tiny_models import picture

pytestmark = pytest.mark.any_transformers

SETTINGS = TrainingSettings(layers=(2, 4), keep=(0.5, 0.25), steps=6, batch_size=4, learning_rate=1e-2)
QUESTIONS = ("What color is the car?", "Is there a dog in the picture?", "How many people are there on the street?")
ANSWERS = ("red", "no", "you are right", "green")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven examples: pictures of two sizes, answers of several tokens."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(7):
        picture(number, *((84, 56) if number % 2 else (56, 140))).save(folder / f"{number}.png")
        question, answer = QUESTIONS[number % 3], ANSWERS[number % 4]
        rows.append({"image": f"{number}.png", "question": question, "answer": answer})
    path = folder / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def trainer(tiny: Tiny, lines: Path, settings: TrainingSettings = SETTINGS, micro: int | None = None) -> Trainer:
    loaded = LoadedModel(tiny.model, tiny.processor, tiny.family, torch.device("cpu"))
    return Trainer(loaded, read_file(lines), settings, Accelerator(cpu=True), micro)


def train(tiny: Tiny, lines: Path, folder: Path, settings: TrainingSettings = SETTINGS, **options: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    found = trainer(tiny, lines, settings, **options)
    found.run(TrainingFolder(folder), 2, lambda *_: None)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["llava", "llava_next"])
def model(request: pytest.FixtureRequest, load: Any) -> Tiny:
    return load(request.param)


@pytest.mark.parametrize("noise", ["spread", "random"])
def test_masks_are_removal_by_index(
    model: Tiny, lines: Path, noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Logits at the answers' tokens of a masked pass, and of a model that the method prunes."""
    found = trainer(model, lines, replace(SETTINGS, sampling="topk", noise=noise, keep=(0.6, 0.2)))
    found.pruner.load_state_dict(draw(found.pruner.design).state_dict())
    micro = Micro(0, (0, 1, 2, 3))
    batch = found._prepare(micro)
    assert not bool(batch.inputs["attention_mask"].all())  # rows of several lengths
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "lmms_eval_stability.model_wrappers.pruner_training.loop.answer_losses",
        lambda *given: seen.update(pruned=given[0]) or answer_losses(*given),
    )
    shift_free = [
        spread_noise(int(row.sum()), found.pruner.design.side) if noise == "spread" else torch.zeros(int(row.sum()))
        for row in batch.visual
    ]
    monkeypatch.setattr(
        found, "_noise", lambda _micro, visual: torch.zeros(visual.shape).masked_scatter(visual, torch.cat(shift_free))
    )
    with torch.no_grad():
        _, shares = found.losses(batch, micro)
    save_pruner(tmp_path, found.pruner, found.card("tiny", "test"))
    ids, (rows, before) = batch.inputs["input_ids"], _places(batch.lengths, batch.inputs["input_ids"].shape[1])
    last = [ids.shape[1] - 1 - n for n in batch.lengths]
    with LVPruning(str(tmp_path)).attach(model.model, model.family) as session, session.pin_query(last):
        logits = model.logits(batch.inputs)
    torch.testing.assert_close(seen["pruned"], logits[rows, before], atol=5e-4, rtol=1e-4)
    for number, share in enumerate(shares):
        counts = torch.tensor([row.visual_tokens[number + 1] / row.visual_tokens[0] for row in session.rows])
        torch.testing.assert_close(share, counts)


def _places(lengths: tuple[int, ...], columns: int) -> tuple[list[int], list[int]]:
    pairs = [(row, columns - n + i - 1) for row, n in enumerate(lengths) for i in range(n)]
    return [row for row, _ in pairs], [place for _, place in pairs]


@pytest.mark.parametrize("sampling", ["gumbel", "topk"])
def test_only_the_modules_learn(model: Tiny, lines: Path, sampling: str, tmp_path: Path):
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    logits = model.logits(model.one())
    found = train(model, lines, tmp_path, replace(SETTINGS, sampling=sampling))
    assert same(model.model.state_dict(), before)
    assert torch.equal(model.logits(model.one()), logits)
    assert all(parameter.grad is None for parameter in model.model.parameters())
    begun = trainer(model, lines, replace(SETTINGS, sampling=sampling)).pruner.state_dict()
    changed = [name for name, value in found.pruner.state_dict().items() if not torch.equal(value, begun[name])]
    # a key's bias moves all logits of a softmax alike: its gradient is zero but for rounding
    assert set(begun) - set(changed) <= {f"stages.{number}.key.bias" for number in (0, 1)}


def test_a_training_goes_on_bit_by_bit(llava: Tiny, lines: Path, tmp_path: Path):
    whole = train(llava, lines, tmp_path / "whole")
    part = trainer(llava, lines)
    folder = TrainingFolder(tmp_path / "part")
    folder.path.mkdir()

    class StopError(Exception):
        pass

    def stop(step: int = 0) -> None:
        if part.step == 5:
            raise StopError

    update = part._update
    part._update = lambda loss: (stop(), update(loss))[1]  # type: ignore[method-assign]
    with pytest.raises(StopError):
        part.run(folder, 2, lambda *_: None)
    rest = trainer(llava, lines)
    rest.restore(folder.load(rest.identity()))
    assert rest.step == 4  # the last checkpoint; step 5 is taken again
    rest.run(folder, 2, lambda *_: None)
    assert same(rest.pruner.state_dict(), whole.pruner.state_dict())
    other = trainer(llava, lines, replace(SETTINGS, seed=1))
    with pytest.raises(PrunerFolderError, match="other settings"):
        other.restore(folder.load(other.identity()))


def test_micro_batches_change_nothing_but_rounding(llava: Tiny, lines: Path, tmp_path: Path):
    one = train(llava, lines, tmp_path / "one").pruner.state_dict()
    other = train(llava, lines, tmp_path / "other", micro=3).pruner.state_dict()
    for name, value in one.items():
        if not name.endswith("key.bias"):  # noise around zero, which Adam makes large
            torch.testing.assert_close(other[name], value, atol=2e-3, rtol=1e-2)


def test_the_share_that_is_kept_follows_what_is_wanted(llava: Tiny, lines: Path, tmp_path: Path):
    weights = LossWeights(answer=0, ratio=1, distill=0)
    settings = replace(SETTINGS, keep=(0.5, 0.25), steps=40, weights=weights, noise="random", learning_rate=3e-2)
    found = trainer(llava, lines, settings)
    for module in found.pruner.stages:
        torch.nn.init.constant_(module.decide.bias, 2.0)
    found.run(TrainingFolder(tmp_path), 100, lambda *_: None)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [10, 20, 30, 40]
    assert abs(log[-1]["kept_2"] - 0.5) < 0.15
    assert abs(log[-1]["kept_4"] - 0.25) < 0.15
    assert log[-1]["ratio"] < log[0]["ratio"]


def test_losses_of_known_logits():
    certain, even = torch.tensor([[20.0, 0, 0, 0]]), torch.zeros(1, 4)
    pruned, unpruned = torch.cat([even, even, certain]), torch.cat([certain, even, certain])
    shares = [torch.tensor([0.5, 0.7]), torch.tensor([0.1, 0.1])]
    found = answer_losses(pruned, unpruned, torch.tensor([0, 1, 0]), (2, 1), shares, (0.5, 0.2))
    log4 = torch.tensor(4.0).log()
    torch.testing.assert_close(found.answer, log4 / 2, atol=1e-6, rtol=0)  # rows: (log 4 + log 4) / 2 and 0
    torch.testing.assert_close(found.distill, log4 / 4, atol=1e-5, rtol=0)  # rows: (log 4 + 0) / 2 and 0
    torch.testing.assert_close(found.ratio, torch.tensor((0.02 + 0.01) / 2))
    assert float(found.agreement) == 1  # of the rows' first tokens; a tie goes to the first
    hot = answer_losses(pruned, unpruned, torch.tensor([0, 1, 0]), (2, 1), shares, (0.5, 0.2), 1e3)
    # Towards a high temperature: half the variance of the difference of the logits, over the vocabulary.
    torch.testing.assert_close(hot.distill, torch.tensor(20.0**2 * 3 / 16 / 2 / 4), atol=0.5, rtol=0)
    total = found.total(LossWeights(answer=1, ratio=10, distill=2))
    torch.testing.assert_close(total, found.answer + 10 * found.ratio + 2 * found.distill)


@pytest.mark.parametrize("keep", [0.1, 0.3, 1.0])
def test_decisions(keep: float):
    logits = torch.linspace(-2, 2, 20).repeat(2, 1).requires_grad_()
    noise, candidates = torch.zeros(2, 20), torch.ones(2, 20, dtype=torch.bool)
    candidates[1, 10:] = False
    total = torch.tensor([20, 10])
    hard, _ = Decision("topk", 1.0, (keep,))(0, logits, noise, candidates, total)
    for row, n in enumerate(total.tolist()):
        kept = (hard[row] > 0.5) & candidates[row]
        assert kept.nonzero().squeeze(1).tolist() == list(range(n))[n - max(1, round(n * keep)) :]
    assert set(hard.detach().round(decimals=4).unique().tolist()) <= {0.0, 1.0}
    hard.sum().backward()
    assert bool((logits.grad > 0).all())
    alone, _ = Decision("gumbel", 1.0, (keep,))(0, logits.detach(), noise, candidates, total)
    assert torch.equal(alone > 0.5, logits > 0)


def test_spread_noise_is_spread():
    noise = spread_noise(144, 12)
    assert torch.equal(noise, spread_noise(144, 0))  # the square root
    kept = noise.argsort(descending=True)[:36].sort().values
    quarters = [
        int(((kept // 12 // 6 == row) & (kept % 12 // 6 == column)).sum()) for row in (0, 1) for column in (0, 1)
    ]
    assert min(quarters) >= 8  # 9 of 36 in each; independent draws have 8 or more in all four in 3 of 10 cases
    assert len(noise.unique()) == 144
    assert not torch.equal(spread_noise(144, 12, 0.3), noise)


def test_each_example_once_per_epoch():
    order = Order(seed=3, size=7)
    first, second = ([order[p] for p in range(start, start + 7)] for start in (0, 7))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert [Order(3, None)[p] for p in (0, 9)] == [0, 9]


def test_the_generator_asks_what_the_demo_model_can_answer():
    loaded, source = load_any("demo"), ShapesSource(0)
    examples = [source.example(loaded.family, loaded.processor, number) for number in range(12)]
    again = source.example(loaded.family, loaded.processor, 5)
    assert (again.prompt.text, again.answer) == (examples[5].prompt.text, examples[5].answer)
    batch = collate(loaded.family, loaded.processor, loaded.model.config, examples, "all")
    assert batch.visual.sum(dim=1).tolist() == [144] * 12
    assert not bool((batch.visual & batch.text).any())
    with torch.no_grad():
        answers = loaded.model(**batch.inputs).logits[:, -2].argmax(-1)
    right = (answers == batch.inputs["input_ids"][:, -1]).sum()
    assert int(right) >= 10  # it answers 97 % of held-out questions


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: must be an object"),
        ('{"image": "0.png", "question": "?"}', "line 1: 'answer' must be a text"),
        ('{"image": "0.png", "question": "?", "answer": " "}', "line 1: 'answer' must be a text"),
        ('{"image": "none.png", "question": "?", "answer": "a"}', "line 1: there is no image"),
        ("", "holds no lines"),
    ],
)
def test_lines_that_cannot_be_used(lines: Path, line: str, match: str):
    path = lines.with_name("bad.jsonl")
    path.write_text(line, encoding="utf-8")
    with pytest.raises(TrainingDataError, match=match):
        read_file(path)


def test_an_image_that_cannot_be_read_is_named(llava: Tiny, tmp_path: Path):
    (tmp_path / "0.png").write_bytes(b"no image")
    (tmp_path / "a.jsonl").write_text('\n{"image": "0.png", "question": "?", "answer": "a"}')
    with pytest.raises(TrainingDataError, match=r"a\.jsonl, line 2: cannot be used"):
        read_file(tmp_path / "a.jsonl").example(llava.family, llava.processor, 0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning-rate must be above 0"),
        ({"weights": LossWeights(0, 0, 0)}, "not all 0"),
        ({"weights": LossWeights(temperature=0)}, "distill-temperature"),
        ({"layers": (4, 2)}, "layers must ascend"),
        ({"layers": (0, 2)}, "begin at 1"),
        ({"layers": (2, 8)}, "they must be 1 to 7, not 8"),
        ({"keep": (0.5, 0.6)}, "not increasing"),
        ({"keep": (0.5,)}, "one share per layer"),
        ({"heads": 5, "width": 64}, "not a multiple of 5 heads"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(llava: Tiny, lines: Path, changes: dict[str, Any], match: str):
    with pytest.raises(TrainingSettingsError, match=match):
        trainer(llava, lines, replace(SETTINGS, **changes))


def command(*words: str) -> Any:
    return CliRunner().invoke(main, ["train-pruner", *words], catch_exceptions=False)


def options(tiny: Tiny, lines: Path, folder: Path, steps: int = 3) -> list[str]:
    words = ["--model", tiny.model.config._name_or_path, "--data", str(lines), "--layers", "2-4", "--keep", "0.5-0.25"]
    return [*words, "--steps", str(steps), "--batch-size", "4", "--device", "cpu", "-o", str(folder)]


def test_the_command_makes_a_pruner_that_the_method_takes(model: Tiny, lines: Path, tmp_path: Path):
    folder = tmp_path / "pruner"
    done = command(*options(model, lines, folder))
    assert done.exit_code == 0, done.output
    assert (
        f"--model llava_lvpruning --model_args pretrained={model.model.config._name_or_path},pruner={folder}"
        in done.output
    )
    assert sorted(path.name for path in folder.iterdir()) == ["log.jsonl", "pruner.json", "pruner.safetensors"]
    card = read_card(folder)
    assert card.base["name"] == model.model.config._name_or_path
    assert "--layers 2-4 --keep 0.5-0.25 --steps 3" in card.training["command"]
    assert card.training["data"]["kind"] == "file"
    with LVPruning(str(folder)).attach(model.model, model.family) as session:
        model.generate(model.one(), new=2)
    n = session.rows[0].visual_tokens[0]
    assert session.rows[0].visual_tokens == (n, round(n * 0.5), round(n * 0.25))
    again = command(*options(model, lines, folder))
    assert again.exit_code == 2
    assert "is not empty; name another folder, or replace it with --overwrite" in again.output
    resumed = command(*options(model, lines, folder), "--resume")
    assert (resumed.exit_code, "holds no checkpoint.pt" in resumed.output) == (2, True)
    assert command(*options(model, lines, folder), "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--layers", "2,4"], "--layers must be numbers joined by hyphens"),
        (["--keep", "much"], "--keep must be numbers joined by hyphens"),
        (["--data", "no_such_task"], "there is no such file and no such task"),
        (["--data", "shapes", "--skip", "3"], "--skip is for tasks"),
        (["--layers", "2-9"], "they must be 1 to 7, not 9"),
    ],
)
def test_what_the_command_refuses(llava: Tiny, lines: Path, tmp_path: Path, extra: list[str], match: str):
    done = command(*options(llava, lines, tmp_path / "pruner"), *extra)
    assert done.exit_code == 2
    assert match in " ".join(done.output.split())


def test_a_folder_of_something_else_is_left_alone(llava: Tiny, lines: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years")
    done = command(*options(llava, lines, tmp_path), "--overwrite")
    assert done.exit_code == 2
    assert "holds what is no pruner (thesis.tex)" in done.output


def test_two_processes_take_the_steps_of_one(llava: Tiny, lines: Path, tmp_path: Path):
    # what accelerate launch starts on one machine with several GPUs; on a CPU it would start a single process
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    words += ["-m", "lmms_eval_stability.cli", "train-pruner"]
    arguments = options(llava, lines, tmp_path / "two")
    arguments = [word for word in arguments if word not in ("--device", "cpu")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*words, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert command(*options(llava, lines, tmp_path / "one")).exit_code == 0
    one, two = (load_pruner(tmp_path / name).state_dict() for name in ("one", "two"))
    assert read_card(tmp_path / "two").training["processes"] == 2
    for name, value in one.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(two[name], value, atol=1e-3, rtol=1e-2)
