"""Answers as models give them and as they should not: any number, with everything that the rules react to."""

from __future__ import annotations

import random
import string

LETTERS = "ABCDEFG"
WORDS = [
    *("a", "an", "the", "A", "I", "It", "yes", "no", "Yes", "NO", "leaf", "Leaf", "red apple", "USA", "option", "none"),
    *("answer is", "the answer is", "The correct answer is", "i choose", "I select", "my choice is", "so ", "thus "),
    *("therefore ", "could be ", "final answer ", "result = ", "=", "선", "정답은", "答案是", "선택", "É", "İ", "ß"),
    *("3.5", "1,000", "1,00", "-2", "1e5", "2.5E-3", ".5", "5.", "12,345,678", "$3", "50%", "3/4", "nan", "inf", "-0"),
    *("teddy bear", "a dog", "cat", "blue", "x", "y = 3", "Failed to obtain answer via API", "unparsable", "<image 1>"),
]
MARKS = [*string.punctuation, "...", " - ", ", ", ".\n", "\n", "\n\n", "\t", "  ", ". ", ": "]


def signed(rng: random.Random, letter: str) -> str:
    """A letter as models write it."""
    return rng.choice(
        [letter, f"{letter}.", f"({letter})", f"{letter})", f"{letter}:", f"{letter},", f":{letter}", f"({letter}).",
         f"{letter}).", f":{letter}).", letter.lower(), f"**{letter}**", f"{letter}. ", f" {letter}. leaf"]
    )  # fmt: skip


def generated(n: int, seed: int, words: list[str] | None = None) -> list[str]:
    """`n` answers: bare letters and words, sentences around them, and strings of anything."""
    rng = random.Random(seed)
    known = WORDS if words is None else [*WORDS, *words]
    answers = ["", " ", "\n", "...", "A", "a", "B.", "(C)", "E", "yes", "no", "yes.", "No, there is none.", " . "]
    while len(answers) < n:
        parts = []
        for _ in range(rng.choice([1, 1, 2, 3, 5, 9])):
            parts.append(signed(rng, rng.choice(LETTERS)) if rng.random() < 0.4 else rng.choice(known))
            parts.append(rng.choice(MARKS) if rng.random() < 0.35 else " ")
        text = "".join(parts)
        answers.append(text.upper() if rng.random() < 0.05 else text)
    return answers
