"""Benchmarks with ten annotators per question and a soft score: VQAv2, OK-VQA, TextVQA, VizWiz.

The score is min(1, matches / 3) averaged over the subsets of nine annotators: 0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2, 3 or
more matches. Answers are compared after the clean-up of the VQA evaluation server, rebuilt here with its peculiarities,
because a prediction that differs from the server's would make divergence out of nothing.
"""

from __future__ import annotations

import re
from typing import Any

from .base import Adapter

# Words that get their apostrophes back. A word is recognised when exactly one of its apostrophes is missing.
_SPELLED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_DIGIT_WORDS = "zero one two three four five six seven eight nine ten"


def _contractions() -> dict[str, str]:
    gaps = ((word, at) for word in _SPELLED.split() for at, letter in enumerate(word) if letter == "'")
    table = {word[:at] + word[at + 1 :]: word for word, at in gaps}
    # the server's one reversed entry: it takes this apostrophe away
    return table | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()
_DIGITS = {word: str(n) for n, word in enumerate(_DIGIT_WORDS.split())}
_WORDS = {**CONTRACTIONS, **_DIGITS, "none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,+\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
#: The server passes a flag where a count belongs, and so removes at most this many full stops.
_MOST_STOPS = 32


def strip_punctuation(answer: str) -> str:
    """Drop each mark that touches a blank anywhere in the answer (or every mark, if a comma groups digits); turn each
    other mark into a blank. Full stops go unless a digit follows."""
    grouped = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        if mark in answer:
            touches = f"{mark} " in answer or f" {mark}" in answer
            text = text.replace(mark, "" if touches or grouped else " ")
    return _FULL_STOP.sub("", text, count=_MOST_STOPS)


def spell(answer: str) -> str:
    """Lower case, numbers up to ten as digits, articles dropped, apostrophes of contractions restored."""
    words = (word for word in answer.lower().split() if word not in _ARTICLES)
    return " ".join(_WORDS.get(word, word) for word in words)


def normalise_vqav2(answer: str) -> str:
    """VQAv2's clean-up: white space, punctuation, words."""
    return spell(strip_punctuation(answer.strip().replace("\n", " ").replace("\t", " ").strip()))


def normalise(answer: str) -> str:
    """The clean-up of OK-VQA, TextVQA and VizWiz: VQAv2's after removing commas and question marks and parting "'s"."""
    return normalise_vqav2(answer.strip().lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def _submitted(row: dict[str, Any]) -> str | None:
    submission = row.get("submission")
    answer = submission.get("answer") if isinstance(submission, dict) else None
    return answer if isinstance(answer, str) else None


VQAV2 = Adapter("soft VQA score", normalise_vqav2, ("vqav2", "vqav2_val"), ("exact_match",), _submitted)
SOFT_VQA = Adapter(
    "soft VQA score",
    normalise,
    ("ok_vqa", "ok_vqa_val2014", "textvqa", "textvqa_val", "vizwiz_vqa", "vizwiz_vqa_val"),
    ("exact_match",),
    _submitted,
)
