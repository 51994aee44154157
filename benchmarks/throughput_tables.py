"""From the numbers of `throughput.py` to Markdown: ratios beside their limits, and the targets that were missed."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binom
from throughput_machine import Quiet

RIVALS = {"llava": "llava_hf", "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl"}
OWN = {
    "inside": "Methods inside the language model (LLaVA): `reuse=prefix` against `reuse=vision`",
    "quantized": "int8 (LLaVA): `reuse=vision` and `reuse=prefix` against `reuse=none`",
}
SECTIONS = [*RIVALS, "methods", *OWN]
EXACT = ("none, batch 1", "vision, batch 1")
#: Least share of its limit that a ratio should reach, and the most that a method's hooks may cost of a prefill.
SHARE, OVERHEAD = 0.9, 0.03
WALL, PROCESSOR = 0, 1


def _reference(result: dict[str, Any]) -> str:
    """Return what a workload's configurations are compared with."""
    return str(result.get("reference", "lmms-eval"))


@dataclass(frozen=True)
class Ratio:
    """A median over rounds, with its interval.

    Attributes:
        value: the median.
        low, high: ends of the sign test's interval of that median, 95 % or the next level above; with fewer than six
            rounds, which cannot give 95 %, the least and the greatest of them.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], column: int) -> Ratio:
        """Return that of the ratios of times in the same rounds."""
        found = sorted(one[column] / other[column] for one, other in zip(above, below, strict=True))
        cut = max(0, int(binom.ppf(0.025, len(found), 0.5)) - 1)  # values beyond either end
        return cls(statistics.median(found), found[cut], found[-1 - cut])

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(name: str, result: dict[str, Any], column: int) -> Ratio:
    """How many times as fast as the rival, or as the model that it is compared with, a configuration is."""
    rounds = result["rounds"]
    return Ratio.of(rounds[_reference(result)], rounds[name], column)


def limit(name: str, result: dict[str, Any], column: int) -> float:
    """The greatest ratio that a configuration could reach: the rival over what cannot be left out."""
    return Ratio.of(result["rounds"][_reference(result)], result["bare"][name], column).value


def share(name: str, result: dict[str, Any], column: int) -> Ratio:
    """How much of that is reached: what cannot be left out, over what the configuration took around it."""
    return Ratio.of(result["bare"][name], result["rounds"][name], column)


@dataclass(frozen=True)
class Missed:
    """A target that was missed, by wall-clock time.

    Attributes:
        section, name: what was measured.
        what: ``ratio``, ``share`` (of the limit) or ``overhead``.
        target, wall, processor: the target, what wall-clock time says, and what processor time says.
        others: share of the processors' time that went elsewhere meanwhile, if known.
    """

    section: str
    name: str
    what: str
    target: float
    wall: float
    processor: float
    others: float | None

    def __str__(self) -> str:
        return f"{self.section}, {self.name}: {self.what} {self.wall:.3g}, target {self.target:g}"

    def line(self) -> str:
        """A row of the table."""
        word = "at most" if self.what == "overhead" else "at least"
        numbers = f"{self.what} {word} {self.target:g} | {self.wall:.3g} | {self.processor:.3g}"
        others = "-" if self.others is None else f"{100 * self.others:.0f} %"
        return f"| {self.section} | {self.name} | {numbers} | {others} |"


def missed(found: dict[str, Any]) -> list[Missed]:
    """Return all targets that were missed."""
    return [one for section in SECTIONS if section in found for one in _missed(section, found[section])]


def _missed(section: str, one: dict[str, Any]) -> Iterator[Missed]:
    if section == "methods":
        wall, user = (one["overhead"][kind]["median"] for kind in ("wall", "user"))
        if wall > OVERHEAD:
            yield Missed(section, "hooks", "overhead", OVERHEAD, wall, user, one["quiet"]["others"])
        return
    for result in one["results"].values():
        for name in result["differing"]:
            if name == result.get("reference"):
                continue
            where, others = f"{result['workload']}, {name}", result["quiet"]["others"]
            wall, user = (ratio(name, result, column) for column in (WALL, PROCESSOR))
            target = result.get("targets", {}).get(name)
            if target is not None and wall.high < target:
                yield Missed(section, where, "ratio", target, wall.value, user.value, others)
            wall, user = (share(name, result, column) for column in (WALL, PROCESSOR))
            if wall.high < SHARE:
                yield Missed(section, where, "share", SHARE, wall.value, user.value, others)


def missed_lines(found: dict[str, Any]) -> list[str]:
    """The missed targets as Markdown."""
    rows = missed(found)
    if not rows:
        return ["None."]
    head = [
        "| section | case | target | wall-clock time | processor time | what else ran |",
        "|---|---|---|---:|---:|---:|",
    ]
    return [*head, *(row.line() for row in rows)]


def _ratios(name: str, result: dict[str, Any]) -> str:
    """Three cells: ratio, limit and share of wall-clock time, and one of processor time."""
    wall, user = (ratio(name, result, column) for column in (WALL, PROCESSOR))
    most, most_user = (limit(name, result, column) for column in (WALL, PROCESSOR))
    of_it, of_it_user = (share(name, result, column) for column in (WALL, PROCESSOR))
    return (
        f"{wall} | {most:.2f} | {100 * of_it.value:.0f} [{100 * of_it.low:.0f}, {100 * of_it.high:.0f}] % |"
        f" {user.value:.2f}, {most_user:.2f}, {100 * of_it_user.value:.0f} %"
    )


def workload_lines(results: Sequence[dict[str, Any]], peak: float | None) -> list[str]:
    """The table of one architecture."""
    lines = [
        "| questions | configuration | ms a question | ratio | limit | share | processor time: ratio, limit, share |"
        " target | answers that differ from the rival's, from ours with none | prefill, TFLOP/s |"
    ]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for result in results:
        rival = result["seconds"]["lmms-eval"][WALL]
        lines.append(f"| {result['workload']} | lmms-eval | {1e3 * rival:.0f} | 1.00 | | | | | | |")
        for name, differing in result["differing"].items():
            differ = f"{differing}, {result['differing_from_none'][name]} of {result['documents']}"
            target = f"{result['targets'][name]:g}" if name in result["targets"] else ""
            lines.append(
                f"| {result['workload']} | {name} | {1e3 * result['seconds'][name][WALL]:.0f} |"
                f" {_ratios(name, result)} | {target} | {differ} | {_rate(result['flops'].get(name), peak)} |"
            )
    return lines


def _rate(flops: float | None, peak: float | None) -> str:
    if flops is None:
        return ""
    share = f" ({100 * flops / 1e12 / peak:.0f} %)" if peak else ""
    return f"{flops / 1e12:.3g}{share}"


def parts_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """The times of the bare passes."""
    known = ("document", "whole", "rest", "rest_batch", "vision", "prefix", "question_batch")
    names = [name for name in known if any(name in result["seconds"] for result in results)]
    lines = [f"| ms, wall and processor | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for result in results:
        times = [result["seconds"].get(name, ()) for name in names]
        cells = " | ".join(", ".join(f"{1e3 * one:.0f}" for one in both) for both in times)
        lines.append(f"| {result['workload']} | {cells} |")
    return lines


def own_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """The table of our models against themselves."""
    lines = [
        "| case | configuration | ms a question | ratio | limit | share | processor time: ratio, limit, share |"
        " answers that differ | first drop | 32 layers: first drop, bound |"
    ]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for result in results:
        for name, differing in result["differing"].items():
            start = f"| {result['workload']} | {name} | {1e3 * result['seconds'][name][WALL]:.0f} |"
            if name == result["reference"]:
                lines.append(f"{start} 1.00 | | | | | | |")
                continue
            drop = f"{result['shared_layers'][0]} of {result['shared_layers'][1]}" if len(result["layers"]) > 1 else ""
            large = "{}, {:.2f}".format(*result["large"]) if result["large"] else ""
            differ = f"{differing} of {result['documents']}"
            lines.append(f"{start} {_ratios(name, result)} | {differ} | {drop} | {large} |")
    return lines


def method_lines(found: dict[str, Any]) -> list[str]:
    """The table of the methods' prefills, and what hooks cost."""
    lines = ["| method | prefill of the language model, ratio to baseline | theory (`cost.py`) |", "|---|---:|---:|"]
    lines += [f"| {name} | {measured:.3f} | {theory:.3f} |" for name, (measured, theory) in found["methods"].items()]
    wall, user = (found["overhead"][kind] for kind in ("wall", "user"))
    lines += [
        "",
        f"The baseline's takes {1e3 * found['baseline_seconds']:.0f} ms. A method that keeps every token (FastV, r=0,"
        f" with hooks) costs {100 * wall['median']:+.1f} % of a bare prefill (median of pairs, wall-clock time; best of"
        f" each {100 * wall['best']:+.1f} %; processor time {100 * user['median']:+.1f} % and"
        f" {100 * user['best']:+.1f} %; target: at most {100 * OVERHEAD:g} %).",
    ]
    return lines


def _machine(one: dict[str, Any]) -> str:
    return f"{one['machine']}; {Quiet(**one['quiet'])}."


def _introduction(args: argparse.Namespace) -> str:
    small, large = args.batches
    return (
        f"Written by `benchmarks/throughput.py`: geometry `{args.geometry}`, {args.dtype} (qwen2_5_vl: bfloat16, which"
        f" its rival always loads), random weights, {args.tokens} generated tokens, images of 640 x 480 pixels as JPEG,"
        " medians over rounds, in each of which everything is run in turn. *Ratio*: of times, the rival's over ours, in"
        " the same round; in brackets, the sign test's interval of the median, 95 % or more (of fewer than six rounds,"
        " the least and the greatest). *Limit*: that if only the bare passes of the model and the reading of documents"
        " took time; *share*: that least time over ours. The passes that a configuration is made of are timed right"
        " before and after it in every round. They are per question or image: `whole` a bare `generate`, `rest` the"
        " same without the vision"
        f" tower, `_batch` in batches of up to {small} (rest) and {large} (question). Perturbed images: one of the"
        " paper's 96 levels each, the same for all questions about an image."
    )


_DECIDES = (
    "**Wall-clock time decides** whether a target is reached: a ratio by its own target, a share of the limit of"
    f" {100 * SHARE:g} %, hooks that cost {100 * OVERHEAD:g} % of a prefill at most. Missed is a ratio or share whose"
    " interval lies below it as a whole. It holds for a quiet machine. How"
    " quiet this one was stands below every table: load averages, and the share of all processors' time that went to"
    " other processes or was withheld by the host. Where that is more than a few per cent, processor time (beside it"
    " everywhere) is the better guide, and a target missed by wall-clock time alone should be measured again."
)


def report(found: dict[str, Any], args: argparse.Namespace) -> str:
    """All sections as Markdown."""
    lines = ["# Throughput against lmms-eval's own models", "", _introduction(args), "", _DECIDES, ""]
    for name in (name for name in SECTIONS if name in found):
        lines += [*_section(name, found[name], args), ""]
    return "\n".join([*lines, "## Missed targets", "", *missed_lines(found), ""])


def _section(name: str, one: dict[str, Any], args: argparse.Namespace) -> list[str]:
    if name == "methods":
        return ["## Token-reduction methods (LLaVA)", "", *method_lines(one), "", _machine(one)]
    results = list(one["results"].values())
    machines = [
        f"- {one['workload']}: rounds: {len(one['rounds'][_reference(one)])}. {_machine(one)}" for one in results
    ]
    tail = ["", *parts_lines(results), "", *machines]
    if name in OWN:
        about = (
            f"One image, {results[0]['n']} questions. Differing answers are those that the reference does not give."
            " *Limit*: only the layers before the first drop read the image once; each takes its share of `prefix`."
            " `rest_batch` is inside the method. *Bound* of 32 layers: multiply-adds of prefills by `cost.py`, at the"
            " sizes of LLaVA-1.5-7B."
        )
        return [f"## {OWN[name]}", "", about, "", *own_lines(results), *tail]
    lines = [f"## {name}: rival `{RIVALS[name]}`", ""]
    if name == "qwen2_vl":
        lines += ["The rival encodes images as JPEG once more, so it answers about other pictures than ours.", ""]
    lines += [f"{results[0]['visual']} visual tokens and {results[0]['text']} others in a prompt.", ""]
    return [*lines, *workload_lines(results, args.peak_tflops), *tail]
