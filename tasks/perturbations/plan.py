"""The ``perturbation:`` block of a task's YAML, checked, and what it does to one sample."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from lmms_eval_stability.tasks.perturbations.assignment import VERSION, Draw, SampleKey, draw_level, seed_of
from lmms_eval_stability.tasks.perturbations.cache import ImageCache
from lmms_eval_stability.tasks.perturbations.entries import (
    Level,
    MissingResourceError,
    Modality,
    PerturbationError,
    UnreadableInputError,
)
from lmms_eval_stability.tasks.perturbations.sets import SETS, find_level, levels_of, methods

#: Where the images of an interleaved prompt go: not part of the question's words.
_IMAGE_PLACEHOLDER = re.compile(r"(<image(?: \d+)?>)")


class PerturbationConfigError(PerturbationError):
    """The ``perturbation:`` block of a task says something that cannot be."""


@dataclass(frozen=True)
class PerturbationRecord:
    """What happened to one sample, as the sample log has it.

    Attributes:
        method, severity: the level.
        seed: of the sample's random numbers.
        changed: whether the output differs from the input; ``None`` where the sample was answered from a cache of
            answers and not perturbed in this run.
        output_sha: 16 hex digits of the SHA-256 of the output (text, or size and RGB pixels of all images).
    """

    method: str
    severity: int
    seed: int
    changed: bool | None = None
    output_sha: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class PerturbationPlan:
    """A task's perturbation.

    Attributes:
        modality: what is perturbed.
        set: name of a fixed set to draw from; or none, and ``method`` and ``severity`` name the one level.
        seed: the benchmark's seed.
        draw: ``levels`` (uniform over the levels of the set) or ``methods`` (over methods, then their severities).
        missing: ``error`` or ``skip``: what to do with levels whose model or data is not there. With ``skip`` they are
            left out of the draw, for every sample and model, and the record of the run says which.
        per_image: image noise is keyed by the image's id, so that all questions about an image see the same noise.
        id_field, image_id_field, question_field: columns of the data, where the usual names do not do.
        dataset: the benchmark's name in the key of the draw; default: the base task's name.
        official_quirks: reproduce what the published code does where it departs from its paper.
        frost_textures: folder with the official photographs of frost, to use instead of drawn ice.
    """

    modality: Modality
    dataset: str
    set: str | None = None
    method: str | None = None
    severity: int | None = None
    seed: int = 0
    draw: Draw = "levels"
    missing: Literal["error", "skip"] = "error"
    per_image: bool = False
    id_field: str | None = None
    image_id_field: str | None = None
    question_field: str = "question"
    official_quirks: bool = False
    frost_textures: str | None = None

    @classmethod
    def from_config(cls, task: str, base_task: str, block: Any) -> PerturbationPlan:
        """Read the block of a YAML.

        Raises:
            PerturbationConfigError: naming the task and what is wrong with the block.
            UnknownPerturbationError: a method, severity or set that does not exist.
        """

        def refuse(reason: str) -> PerturbationConfigError:
            return PerturbationConfigError(f"task {task}: perturbation: {reason}")

        if not isinstance(block, Mapping):
            raise refuse("write a mapping, such as {modality: image, set: paper-96, seed: 0}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(block) - known)
        if unknown:
            raise refuse(f"unknown {', '.join(map(str, unknown))}; known are {', '.join(sorted(known))}")
        given = {"dataset": base_task, **block}
        if ("set" in given) == ("method" in given):
            raise refuse("give either a set, or a method with its severity")
        if "set" in given and "severity" in given:
            raise refuse("a set draws the severities itself: leave severity out")
        given.setdefault("modality", _modality_of(given))
        for name, type_ in (("seed", int), ("per_image", bool), ("official_quirks", bool)):
            if name in given and type(given[name]) is not type_:
                raise refuse(f"{name} must be {'a whole number' if type_ is int else 'true or false'}")
        for name, choices in (
            ("modality", ("image", "text")),
            ("draw", ("levels", "methods")),
            ("missing", ("error", "skip")),
        ):
            if name in given and given[name] not in choices:
                raise refuse(f"{name} must be one of {', '.join(choices)}, not {given[name]!r}")
        for name in ("per_image", "frost_textures"):
            if given.get(name) and given["modality"] != "image":
                raise refuse(f"{name} is for images")
        if "method" in given:
            given.setdefault("severity", 1 if _severities(given) == 1 else None)
        plan = cls(**given)
        try:
            plan.levels  # noqa: B018 - refused now, not at the first sample
        except PerturbationError as error:
            raise type(error)(f"task {task}: {error}") from error
        return plan

    @cached_property
    def asked(self) -> tuple[Level, ...]:
        """The levels of the set, or the one level."""
        if self.set is not None:
            return levels_of(self.set, self.modality)
        assert self.method is not None
        return (find_level(self.modality, self.method, self.severity),)  # type: ignore[arg-type]

    @cached_property
    def left_out(self) -> tuple[Level, ...]:
        """Levels whose model or data is not there."""
        if self.modality == "image":
            missing = {method for method in {level.method for level in self.asked} if self._image_needs(method)}
            return tuple(level for level in self.asked if level.method in missing)
        from lmms_eval_stability.tasks.perturbations.text import available_levels

        available = set(available_levels())
        return tuple(level for level in self.asked if level not in available)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels that samples draw from.

        Raises:
            MissingResourceError: some level cannot be made here, and ``missing`` is ``error``; or none can.
        """
        left = tuple(level for level in self.asked if level not in set(self.left_out))
        if left and (self.missing == "skip" or len(left) == len(self.asked)):
            return left
        if self.modality == "image":
            listed = "; ".join(dict.fromkeys(self._image_needs(level.method) or "" for level in self.left_out))
        else:
            needs = {level.method: methods("text")[level.method].needs for level in self.left_out}
            listed = "; ".join(f"{method} needs a {' and a '.join(need)}" for method, need in needs.items())
            listed += ". `lmms-eval-stability perturb resources` says what each needs and how to get it"
        raise MissingResourceError(
            f"{len(self.left_out)} of {len(self.asked)} {self.modality} levels cannot be made here: {listed}."
            " Or write missing: skip in the task's perturbation, and these levels are left out of the draw"
        )

    def _image_needs(self, method: str) -> str | None:
        """Return why a method cannot be applied here, or None."""
        from lmms_eval_stability.tasks.perturbations.image import check_resources

        try:
            check_resources(method, official_quirks=self.official_quirks, frost_textures=self._textures)
        except MissingResourceError as error:
            return str(error)
        return None

    def describe(self) -> dict[str, Any]:
        """Return what the results of a run say of the perturbation."""
        described = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if self.frost_textures is not None:  # the photographs are checked, and where they lie is no difference
            described["frost_textures"] = True
        if self.set is not None:
            described["levels"] = len(self.levels)
            described["left_out"] = [f"{level.method}-{level.severity}" for level in self.left_out]
        if self.modality == "text":
            from lmms_eval_stability.tasks.perturbations.text import describe_resources

            described["resources"] = describe_resources()
        return {**described, "version": VERSION}

    def key(self, split: str, sample: Any) -> SampleKey:
        """Return the key of a sample."""
        return SampleKey(self.seed, self.dataset, split, str(sample), self.modality)

    def planned(self, key: SampleKey) -> PerturbationRecord:
        """Return the record of a sample before it is perturbed."""
        level = draw_level(key, self.levels, self.draw)
        return PerturbationRecord(level.method, level.severity, seed_of(key, level))

    def question(self, key: SampleKey, text: str) -> tuple[str, PerturbationRecord]:
        """Return the perturbed question and its record; placeholders of images stay where they are."""
        from lmms_eval_stability.tasks.perturbations.text import perturb_text

        record = self.planned(key)
        level = Level(record.method, record.severity)
        output = ""
        for index, (literal, part) in enumerate(question_parts(text)):
            if part is not None:
                part = perturb_text(
                    part,
                    level.method,
                    level.severity,
                    seed=seed_of(key, level, index),
                    official_quirks=self.official_quirks,
                )
            output += literal + (part or "")
        sha = hashlib.sha256(output.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return output, dataclasses.replace(record, changed=output != text, output_sha=sha)

    def images(self, key: SampleKey, images: list[Image.Image]) -> tuple[list[Image.Image], PerturbationRecord]:
        """Return a sample's perturbed images, all at its one level, and their record."""
        record = self.planned(key)
        level = Level(record.method, record.severity)
        digest, changed, outputs = hashlib.sha256(), False, []
        for part, image in enumerate(images):
            output = self._image(image, level, seed_of(key, level, part))
            pixels = output.tobytes()
            digest.update(f"{output.width}x{output.height}:".encode() + pixels)
            changed |= output.size != image.size or pixels != image.convert("RGB").tobytes()
            outputs.append(output)
        return outputs, dataclasses.replace(record, changed=changed, output_sha=digest.hexdigest()[:16])

    def _image(self, image: Image.Image, level: Level, seed: int) -> Image.Image:
        from lmms_eval_stability.tasks.perturbations.image import perturb_image

        def make() -> Image.Image:
            quirks, textures = self.official_quirks, self._textures
            return perturb_image(
                image, level.method, level.severity, seed=seed, official_quirks=quirks, frost_textures=textures
            )

        cache = ImageCache.from_environment()
        if cache is None:
            return make()
        photographs = self._textures is not None
        file = cache.file(image, level, seed, official_quirks=self.official_quirks, photographs=photographs)
        output = cache.read(file)
        if output is None:
            output = make()
            cache.write(file, output)
        return output

    @property
    def _textures(self) -> Path | None:
        return None if self.frost_textures is None else Path(self.frost_textures)


def question_parts(text: str) -> list[tuple[str, str | None]]:
    """Return a question as pairs (what stays, what is perturbed); joined, they are the question.

    Placeholders of images stay, and so does white space around them. Without placeholders all of it is perturbed.
    """
    pieces = _IMAGE_PLACEHOLDER.split(text)  # every second one is a placeholder
    pairs: list[tuple[str, str | None]] = (
        [("", pieces[0])] if len(pieces) == 1 or pieces[0].strip() else [(pieces[0], None)]
    )
    for placeholder, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        words = piece.lstrip()
        pairs.append((placeholder + piece[: len(piece) - len(words)], words or None))
    return pairs


def readable_image(image: Any, where: str) -> Image.Image:
    """Return an image that a task shows, opened if it is a file.

    Raises:
        UnreadableInputError: it is a video, an audio clip, or a file that is no image; ``where`` names the sample.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str):
        try:
            return Image.open(image)
        except OSError as error:
            raise UnreadableInputError(f"{where}: {image} is not an image: {error}") from error
    raise UnreadableInputError(f"{where}: only images are perturbed, not {type(image).__name__}")


def _modality_of(given: Mapping[str, Any]) -> Any:
    """Return the modality that a set or a method implies, or None."""
    if given.get("set") in SETS:
        return SETS[given["set"]]
    candidates: tuple[Modality, ...] = ("image", "text")
    return next((modality for modality in candidates if given.get("method") in methods(modality)), None)


def _severities(given: Mapping[str, Any]) -> int | None:
    entry = methods(given["modality"]).get(given["method"])
    return None if entry is None else entry.severities
