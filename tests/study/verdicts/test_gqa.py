"""GQA, and every task scored like it, against lmms-eval's exact match."""

from __future__ import annotations

import random

from lmms_eval_stability.verdicts.exact_match import normalise

from .answers import generated


def test_exact_match_equals_lmms_evals() -> None:
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    rng = random.Random(4)
    # numpy's lower case has no room for a letter that becomes two: lmms-eval cuts such answers off, which is not wanted
    answers = [answer for answer in dict.fromkeys(generated(9500, 4)) if "İ" not in answer]
    assert len(answers) >= 5000
    hits = 0
    for answer in answers:
        for target in (rng.choice(answers), answer.title(), f"{answer.strip().lower()}."):
            scored = exact_match_hf_evaluate([answer.strip()], [target], ignore_case=True, ignore_punctuation=True)
            equal = normalise(answer) == normalise(f"x{target}x")[1:-1]  # references are not stripped
            assert scored["exact_match"] == equal, (answer, target)
            hits += int(equal)
    assert hits > 2000
