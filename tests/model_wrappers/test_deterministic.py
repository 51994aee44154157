"""``deterministic=True``: everything that may change sums is off, in a process of its own (torch's switches stay)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from lmms_eval_stability.model_wrappers import errors
from tests.model_wrappers.test_wrapper import BASELINES, make

SCRIPT = """
import json, os, sys
import torch
from tests.model_wrappers.documents import documents
from tests.model_wrappers.test_wrapper import BASELINES, make, run, texts
model = make(BASELINES, "llava", sys.argv[1], deterministic=True, batch_size="8", reuse="prefix")
results = run(model, documents(3))
facts = results[0].token_counts.run
print(json.dumps({
    "facts": [facts[name] for name in ("batch_size", "reuse", "deterministic")],
    "torch": torch.are_deterministic_algorithms_enabled(),
    "flash": torch.backends.cuda.flash_sdp_enabled(),
    "workspace": os.environ["CUBLAS_WORKSPACE_CONFIG"],
    "answered": all(texts(results)),
}))
"""


def test_it_turns_everything_off_and_says_what_remains(tiny_folder: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tiny_folder("llava")], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "facts": [1, "none", True],
        "torch": True,
        "flash": False,
        "workspace": ":4096:8",
        "answered": True,
    }
    assert "What remains: another GPU or CPU" in done.stdout + done.stderr


def test_kernels_that_add_in_any_order_are_refused(tiny_folder: Callable[[str], str]) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="attn_implementation=flash_attention_2"):
        make(BASELINES, "llava", tiny_folder("llava"), deterministic=True, attn_implementation="flash_attention_2")
