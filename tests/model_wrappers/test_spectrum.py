"""Spectra of known matrices, of quantised layers, and the command on the embedded model."""

from __future__ import annotations

import csv
import json
from math import exp, log
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from lmms_eval_stability.cli import main
from lmms_eval_stability.commands.spectrum import compared
from lmms_eval_stability.demo.dataset import stream
from lmms_eval_stability.demo.scenes import draw_scene, render
from lmms_eval_stability.errors import OptionError
from lmms_eval_stability.model_wrappers.spectrum import Measured, Spectrum, effective_weight, spectrum_of
from lmms_eval_stability.model_wrappers.token_reduction.lofi import inverse_participation_ratio


def test_known_spectra() -> None:
    one_direction = torch.outer(torch.arange(1.0, 6.0), torch.tensor([1.0, -2.0, 3.0]))
    assert spectrum_of(one_direction) == Spectrum(pytest.approx(1.0), pytest.approx(1.0))  # type: ignore[arg-type]
    alike = 7 * torch.eye(4, 9)
    assert spectrum_of(alike).ipr == pytest.approx(0.25)
    assert spectrum_of(alike).effective_rank == pytest.approx(4.0)
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0]))  # shares 0.9 and 0.1
    assert spectrum_of(two).ipr == pytest.approx(0.82)
    assert spectrum_of(two).effective_rank == pytest.approx(exp(-0.9 * log(0.9) - 0.1 * log(0.1)))


def test_the_ipr_is_that_of_lofi_and_the_same_for_a_matrix_on_its_side() -> None:
    matrix = torch.randn(40, 17, generator=torch.Generator().manual_seed(0))
    assert spectrum_of(matrix).ipr == pytest.approx(inverse_participation_ratio(matrix), rel=1e-5)
    assert spectrum_of(matrix.T).effective_rank == pytest.approx(spectrum_of(matrix).effective_rank)


def test_the_effective_weight_is_what_a_layer_multiplies_by() -> None:
    layer = nn.Linear(1500, 3).requires_grad_(False)  # wider than one slice of the identity
    found = effective_weight(layer, 1500, torch.device("cpu"), torch.float32)
    # the bias is added and taken off again, which rounds
    torch.testing.assert_close(found, layer.weight.T.double(), atol=1e-7, rtol=0)


def test_the_command_measures_weights_and_activations(tmp_path: Path) -> None:
    output, documents = tmp_path / "spectra.csv", tmp_path / "questions.jsonl"
    lines = []
    for number in range(2):
        Image.fromarray(render(draw_scene(stream("validation", number)))).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": "How many objects are there?"}))
    documents.write_text("\n".join(lines), encoding="utf-8")
    arguments = ["spectrum", "--model", "demo", "--scheme", "nf4,gptq:demo-gptq", "--documents", str(documents)]
    done = CliRunner().invoke(main, [*arguments, "-o", str(output)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(output.open(newline="", encoding="utf-8")))
    for scheme in ("nf4", "gptq"):
        own = [row for row in rows if row["scheme"] == scheme]
        assert sum(row["what"] == "weight" for row in own) == 8 * 7
        states = {(int(row["layer"]), row["name"]): row for row in own if row["what"] == "activation"}
        assert set(states) == {(layer, tokens) for layer in range(9) for tokens in ("all", "visual")}
        # The vision tower is not quantised: what enters the language model is the same.
        entering = states[0, "visual"]
        assert float(entering["ipr"]) == pytest.approx(float(entering["ipr_baseline"]), rel=1e-3)
        assert states[8, "visual"]["ipr"] != states[8, "visual"]["ipr_baseline"]
        # Four bits move a spectrum by a few per cent, not by more.
        for row in own:
            if row["what"] == "weight":
                assert 1e-5 < abs(float(row["ipr"]) / float(row["ipr_baseline"]) - 1) < 0.2
    assert "visual tokens" in done.output


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("int3", "there is no quantisation scheme 'int3'; there are int8, nf4, gptq, awq"),
        ("gptq", "--scheme gptq: name a checkpoint made from demo, as in gptq:PATH"),
        ("int8:/nowhere/at-all", "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused(scheme: str, message: str) -> None:
    done = CliRunner().invoke(main, ["spectrum", "--model", "demo", "--scheme", scheme])
    assert done.exit_code == 2
    assert message in done.output


def test_a_quantised_model_of_another_depth_is_refused() -> None:
    one = Measured({"layers.0.q_proj": Spectrum(0.5, 2.0)}, {})
    other = Measured({"layers.0.q_proj": Spectrum(0.5, 2.0), "layers.1.q_proj": Spectrum(0.5, 2.0)}, {})
    with pytest.raises(OptionError, match="not made from this model"):
        list(compared("gptq", one, other))
