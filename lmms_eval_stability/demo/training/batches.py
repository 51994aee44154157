"""Training batches as numpy arrays, made in a worker process that does not need torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lmms_eval_stability.demo.dataset import stream
from lmms_eval_stability.demo.questions import KINDS, Question, all_questions, pick
from lmms_eval_stability.demo.scenes import (
    COLORS,
    IMAGE_SIZE,
    SHAPES,
    Scene,
    coverage,
    decode_jpeg,
    draw_scene,
    encode_jpeg,
    render,
)
from lmms_eval_stability.demo.training.prompts import IMAGE, PAD, answer_text, build_tokenizer, prompt_text

PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
N_PATCHES = GRID * GRID
QUESTIONS_PER_IMAGE = 8
MAX_TEXT = 20
"""Tokens that one question may take, from its first word to its answer."""

TRAINING_MIX: dict[str, float] = {
    "color": 0.18,
    "shape": 0.20,
    "count": 0.10,
    "exist": 0.16,
    "relation_shape": 0.18,
    "relation_color": 0.18,
}
"""Share of each kind in training: relations, the hardest, more often than in the held-out set."""

OBJECT_COVERAGE = 0.25
"""Share of a patch that an object must cover to own it in the auxiliary losses."""

CELL, REACH = 4, 4
WINDOW = 2 * REACH + PATCH_SIZE // CELL
SILHOUETTE_CELLS = WINDOW * WINDOW
"""Cells of 4x4 pixels in a window that reaches 4 cells beyond a patch on every side: most of an object's outline."""


@dataclass(frozen=True)
class BatchRequest:
    """What to draw: `n_images` consecutive pictures of a split, starting at `first`."""

    split: str
    first: int
    n_images: int
    difficulty: tuple[float, float]
    seed: int


@dataclass(frozen=True)
class Batch:
    """B pictures with Q questions each, and what the generator knows about every patch.

    Attributes:
        pixels: uint8 (B, H, W, 3), after a JPEG round trip.
        tokens: int64 (B, Q, T), question, instruction, "ASSISTANT:", answer; padded on the right.
        prompt_lengths: int64 (B, Q), tokens before the answer.
        answers: int64 (B, Q), the answer's token id.
        kinds: int64 (B, Q), index into `KINDS`.
        patch_shape: int64 (B, N), 0 for background, else 1 + index into SHAPES.
        patch_color: int64 (B, N), 0 for background, else 1 + index into COLORS.
        patch_offset: float32 (B, N, 2), from the patch's centre to its object's, in patches; 0 on background.
        silhouette: float32 (B, N, SILHOUETTE_CELLS), how much the patch's object covers of the cells around it.
        pairs: float32 (B, colours * shapes), 1 where the colour-shape pair is in the picture.
        n_objects: int64 (B,).
    """

    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    answers: NDArray[np.int64]
    kinds: NDArray[np.int64]
    patch_shape: NDArray[np.int64]
    patch_color: NDArray[np.int64]
    patch_offset: NDArray[np.float32]
    silhouette: NDArray[np.float32]
    pairs: NDArray[np.float32]
    n_objects: NDArray[np.int64]


@dataclass(frozen=True)
class PatchTargets:
    """Ground truth of one picture's patches; shapes as in `Batch` without the leading B."""

    shape: NDArray[np.int64]
    color: NDArray[np.int64]
    offset: NDArray[np.float32]
    silhouette: NDArray[np.float32]


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """Return this process's tokenizer."""
    return build_tokenizer()


def token_id(token: str) -> int:
    """Return the id of a token that must be in the vocabulary."""
    found = tokenizer().token_to_id(token)
    if found is None:
        raise KeyError(f"{token!r} is not in the vocabulary")
    return int(found)


@lru_cache(maxsize=1)
def prefix_ids() -> tuple[int, ...]:
    """Return the tokens that every prompt starts with: up to and including the line break after the picture."""
    ids = tokenizer().encode(prompt_text("")).ids
    return tuple(ids[: ids.index(token_id(IMAGE)) + 2])


@lru_cache(maxsize=8192)
def question_ids(text: str) -> tuple[int, ...]:
    """Return the tokens of a prompt after `prefix_ids()`."""
    ids = tokenizer().encode(prompt_text(text)).ids
    start = len(prefix_ids())
    if tuple(ids[:start]) != prefix_ids():
        raise ValueError(f"the tokenizer does not split the prompt after the picture for {text!r}")
    return tuple(ids[start:])


def make_batch(request: BatchRequest) -> Batch:
    """Draw the pictures of `request`, ask about them and collect the ground truth."""
    scenes, questions = [], []
    for index in range(request.first, request.first + request.n_images):
        rng = stream(request.split, index, seed=request.seed)
        scene = draw_scene(rng, difficulty=request.difficulty)
        scenes.append(scene)
        questions.append(_ask(rng, scene))
    patches = [patch_targets(scene) for scene in scenes]
    tokens, lengths, answers = _tokenise(questions)
    return Batch(
        pixels=np.stack([decode_jpeg(encode_jpeg(render(scene))) for scene in scenes]),
        tokens=tokens,
        prompt_lengths=lengths,
        answers=answers,
        kinds=np.array([[KINDS.index(q.kind) for q in asked] for asked in questions], dtype=np.int64),
        patch_shape=np.stack([p.shape for p in patches]),
        patch_color=np.stack([p.color for p in patches]),
        patch_offset=np.stack([p.offset for p in patches]),
        silhouette=np.stack([p.silhouette for p in patches]),
        pairs=np.stack([_pairs(scene) for scene in scenes]),
        n_objects=np.array([len(scene.objects) for scene in scenes], dtype=np.int64),
    )


def _ask(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """Return `QUESTIONS_PER_IMAGE` different questions; a kind that a scene does not allow leaves room for others."""
    available = all_questions(scene)
    weights = np.array([TRAINING_MIX[kind] for kind in KINDS])
    asked: list[Question] = []
    while len(asked) < QUESTIONS_PER_IMAGE:
        kind = int(rng.choice(len(KINDS), p=weights / weights.sum()))
        question = pick(rng, available[KINDS[kind]], {q.text for q in asked})
        if question is None:
            weights[kind] = 0.0
        else:
            asked.append(question)
    return asked


def _tokenise(
    questions: list[list[Question]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return `tokens`, `prompt_lengths` and `answers` of a batch."""
    shape = (len(questions), QUESTIONS_PER_IMAGE)
    tokens = np.full((*shape, MAX_TEXT), token_id(PAD), dtype=np.int64)
    lengths, answers = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for b, asked in enumerate(questions):
        for q, question in enumerate(asked):
            ids = question_ids(question.text)
            (answer,) = tokenizer().encode(answer_text(question.answer), add_special_tokens=False).ids
            tokens[b, q, : len(ids) + 1] = (*ids, answer)
            lengths[b, q], answers[b, q] = len(ids), answer
    return tokens[..., : int(lengths.max()) + 1], lengths, answers


def patch_targets(scene: Scene) -> PatchTargets:
    """Return which object owns each patch (the one covering most, if any covers enough), and what it looks like."""
    covered = np.stack([coverage(item) for item in scene.objects])
    share = covered.reshape(-1, GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean(axis=(2, 4)).reshape(-1, N_PATCHES)
    owner = share.argmax(axis=0)
    owned = share.max(axis=0) >= OBJECT_COVERAGE
    shapes = np.array([1 + SHAPES.index(item.shape) for item in scene.objects])
    colors = np.array([1 + list(COLORS).index(item.color) for item in scene.objects])
    centres = np.array([(item.x, item.y) for item in scene.objects])
    rows, columns = np.divmod(np.arange(N_PATCHES), GRID)
    patch_centres = np.stack([columns + 0.5, rows + 0.5], axis=1) * PATCH_SIZE
    offset = (centres[owner] - patch_centres) / PATCH_SIZE
    return PatchTargets(
        shape=np.where(owned, shapes[owner], 0).astype(np.int64),
        color=np.where(owned, colors[owner], 0).astype(np.int64),
        offset=np.where(owned[:, None], offset, 0.0).astype(np.float32),
        silhouette=_windows(covered)[owner, rows, columns].reshape(N_PATCHES, -1).astype(np.float32),
    )


def _windows(covered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut coverage maps (K, H, W) into each patch's window of cells: (K, GRID, GRID, WINDOW, WINDOW)."""
    size = IMAGE_SIZE // CELL
    cells = covered.reshape(-1, size, CELL, size, CELL).mean(axis=(2, 4))
    padded = np.pad(cells, ((0, 0), (REACH, REACH), (REACH, REACH)))
    step = PATCH_SIZE // CELL
    row, column = np.ogrid[: GRID * step : step, : GRID * step : step]
    reach_rows = row[:, :, None, None] + np.arange(WINDOW)[:, None]
    reach_columns = column[:, :, None, None] + np.arange(WINDOW)[None, :]
    windows: NDArray[np.float64] = padded[:, reach_rows, reach_columns]
    return windows


def _pairs(scene: Scene) -> NDArray[np.float32]:
    present = np.zeros((len(COLORS), len(SHAPES)), dtype=np.float32)
    for item in scene.objects:
        present[list(COLORS).index(item.color), SHAPES.index(item.shape)] = 1.0
    return present.reshape(-1)
