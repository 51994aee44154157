"""Throughput of this package's models against lmms-eval's own, on the same weights and the same samples.

    python benchmarks/throughput.py                                # about 10 minutes on 2 cores; results/throughput.md
    python benchmarks/throughput.py --sections llava methods       # some of it; the other sections' numbers are kept
    python benchmarks/throughput.py --quick -o /tmp/out            # tiny models, seconds: shows that it works
    python benchmarks/throughput.py --device cuda --geometry 7b --dtype bfloat16 --peak-tflops 989

Rivals are lmms-eval's llava_hf, qwen2_vl and qwen2_5_vl. Weights are random, and one copy of them serves both. Every
round runs all configurations of a workload in turn; figures are medians over the rounds. A figure's limit follows from
the bare passes of the model (`throughput_parts.py`), timed in the same rounds: with n questions about an image,
n * rival / (vision + prefix + n * question) for reuse=prefix. What the task does (decoding, perturbing) counts in
both. On a machine with other work, ratios of processor time mean more than those of wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from lmms_eval.models import get_model  # noqa: E402
from loguru import logger  # noqa: E402
from throughput_models import SPLIT, TASK, Documents, build  # noqa: E402
from throughput_parts import Parts, Spent, timed, with_settings  # noqa: E402

from lmms_eval_stability.cost import Geometry, prefill_cost  # noqa: E402
from lmms_eval_stability.model_wrappers import models  # noqa: E402
from lmms_eval_stability.model_wrappers.arguments import make_methods  # noqa: E402
from lmms_eval_stability.model_wrappers.geometry import decoder_geometry  # noqa: E402
from lmms_eval_stability.model_wrappers.registry import METHODS, MODELS  # noqa: E402

RIVALS = {"llava": "llava_hf", "qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl"}
SECTIONS = [*RIVALS, "methods"]
OURS = {"llava": "LlavaBaseline", "qwen2_vl": "Qwen2VlBaseline", "qwen2_5_vl": "Qwen25VlBaseline"}
EXACT = ("none, batch 1", "vision, batch 1")
SHARE, OVERHEAD = 0.9, 0.03


@dataclass(frozen=True)
class Workload:
    """Questions about images, and the ratios that are to be reached, by configuration."""

    name: str
    images: int
    questions: int
    perturbed: bool
    targets: dict[str, float]

    @property
    def documents(self) -> Documents:
        return Documents(self.images, self.questions, perturbed=self.perturbed)


def workloads(kind: str, configurations: Sequence[str], *, quick: bool) -> list[Workload]:
    """The workloads of one architecture."""
    one, _, batch, prefix = configurations[:4]
    single = {name: 1.0 for name in configurations if name != one}
    five = {"vision, batch 1": 1.15, batch: 1.15, prefix: 3.5}
    if quick:
        return [Workload("5 per image", 2, 5, False, {}), Workload("2 per image, perturbed", 2, 2, True, {})]
    if kind != "llava":
        return [Workload("5 per image", 2, 5, False, five)]
    return [
        Workload("1 per image", 8, 1, False, single),
        Workload("5 per image", 3, 5, False, five),
        Workload("32 per image", 1, 32, False, {prefix: 8.0}),
        Workload("1 per image, perturbed", 8, 1, True, single),
        Workload("5 per image, perturbed", 3, 5, True, five),
    ]


class Bench:
    """One architecture: the rival, our configurations, and the parts."""

    def __init__(self, kind: str, args: argparse.Namespace, folder: Path) -> None:
        self.kind, self.args = kind, args
        dtype = torch.bfloat16 if kind == "qwen2_5_vl" else getattr(torch, args.dtype)  # the rival loads nothing else
        path = str(build(kind, args.geometry, dtype, args.device, folder))
        pixels = {} if kind == "llava" else {"min_pixels": 3136, "max_pixels": 602112}
        self.rival = get_model(RIVALS[kind])(pretrained=path, device=args.device, device_map=args.device, **pixels)
        self.rival._model = None
        own_dtype = str(dtype).removeprefix("torch.")
        self.ours = getattr(models, OURS[kind])(pretrained=path, device=args.device, dtype=own_dtype, **pixels)
        self.rival._model = self.ours.model  # one copy of the weights, for both
        small, large = args.batches
        self.settings = {
            "none, batch 1": ("none", 1),
            "vision, batch 1": ("vision", 1),
            f"vision, batch {small}": ("vision", small),
            f"prefix, batch {large}": ("prefix", large),
        }
        self.gen_kwargs = {"max_new_tokens": args.tokens}

    def answer(self, model: Any, documents: Documents, gen_kwargs: dict[str, Any] | None = None) -> tuple[Spent, Any]:
        """Return what it costs to answer all documents, and the answers."""
        model.task_dict = {TASK: {SPLIT: documents}}
        requests = documents.requests(gen_kwargs or self.gen_kwargs, simple=model.is_simple)
        return timed(lambda: model.generate_until(requests), self.ours.device)

    def parts(self, documents: Documents) -> Parts:
        doc = documents[0]
        return Parts(self.ours, documents.messages(doc), doc["question"], self.args.tokens)

    def run(self, workload: Workload) -> dict[str, Any]:
        """All configurations in turn, `rounds` times, after one round at a quarter of the documents to warm up."""
        documents, parts = workload.documents, self.parts(workload.documents)
        runs = {"lmms-eval": self.rival}
        asked = self.args.configurations or list(self.settings)
        chosen = {name: how for name, how in self.settings.items() if name in asked}
        runs |= {name: with_settings(self.ours, *how) for name, how in chosen.items()}
        warm = Documents(1, min(2, workload.questions), perturbed=workload.perturbed)
        for model in runs.values():
            self.answer(model, warm)
        spent: dict[str, list[Spent]] = {}
        answers: dict[str, list[str]] = {}
        prefills: dict[str, float] = {}
        for _ in range(self.args.rounds):
            shown = timed(lambda: [documents.messages(documents[i]) for i in range(len(documents))], self.ours.device)
            spent.setdefault("document", []).append(shown[0] / len(documents))
            questions = min(self.args.batches[1], len(documents))
            for name, one in parts.measure((self.args.batches[0], questions)).items():
                spent.setdefault(name, []).append(one)
            for name, model in runs.items():
                cost, results = self.answer(model, documents)
                spent.setdefault(name, []).append(cost / len(documents))
                answers[name] = [one if isinstance(one, str) else one.text for one in results]
                if name != "lmms-eval" and "prefix" not in name:
                    prefills[name] = sum(r.token_counts.prefill_ms - r.token_counts.vision_ms for r in results) / 1e3
        typical = {name: [_median(all_, "wall"), _median(all_, "user")] for name, all_ in spent.items()}
        expected = answers["lmms-eval"]
        return {
            "workload": workload.name,
            "n": workload.questions,
            "documents": len(documents),
            "targets": workload.targets,
            "visual": parts.visual,
            "text": parts.length - parts.visual,
            "question_batch": questions,
            "seconds": typical,
            "differing": {name: _differing(expected, answers[name]) for name in chosen},
            "differing_from_none": {name: _differing(answers.get(EXACT[0], []), answers[name]) for name in chosen},
            "flops": {name: self._flops(parts, len(documents)) / seconds for name, seconds in prefills.items()},
            "distinct_answers": len(set(expected)),
        }

    def _flops(self, parts: Parts, rows: int) -> float:
        """Floating-point operations of the language model's prefills; a multiply-add is two."""
        geometry = Geometry(**decoder_geometry(self.ours.model))
        return 2 * rows * prefill_cost(geometry, [0], [parts.visual], parts.length - parts.visual).flops

    def _method(self, name: str, **arguments: Any) -> Any:
        if name == "lofi" and self.args.geometry == "tiny":
            arguments["rank"] = 8  # a tiny image has 16 tokens, fewer than the rank by default
        return make_methods(MODELS[f"{self.kind}_{name}"], None, arguments, ())[0]

    def methods(self) -> dict[str, Any]:
        """Prefill of every method beside its theory, and the cost of a method that does nothing."""
        documents = Documents(2 if self.args.quick else 4, 1, perturbed=False)
        geometry, parts = Geometry(**decoder_geometry(self.ours.model)), self.parts(documents)
        chosen = {"baseline": None, **{name: self._method(name) for name in _token_reductions(self.kind)}}
        measured: dict[str, list[float]] = {name: [] for name in chosen}
        theory: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(self.args.rounds):
            for name, method in chosen.items():
                model = with_settings(self.ours, "none", 1, method)
                for result in self.answer(model, documents, {"max_new_tokens": 1})[1]:
                    counts = result.token_counts
                    measured[name].append((counts.prefill_ms - counts.vision_ms) / 1e3)
                    text = counts.input_tokens - counts.visual_tokens[0]
                    cost = prefill_cost(geometry, counts.visual_token_layers, counts.visual_tokens, text)
                    theory[name].append(cost.flops_ratio)
        empty = self._method("fastv", r=0.0)
        bare, hooked = [], []
        parts.first_token(empty)
        for _ in range(4 * self.args.rounds):
            bare.append(parts.first_token())
            hooked.append(parts.first_token(empty))
        base = statistics.median(measured["baseline"])
        rows = {n: [statistics.median(v) / base, statistics.mean(theory[n])] for n, v in measured.items() if v}
        ratios = [b / a for a, b in zip(bare, hooked, strict=True)]
        overhead = {"median": statistics.median(ratios) - 1, "best": min(hooked) / min(bare) - 1, "bare": min(bare)}
        return {"methods": rows, "baseline_seconds": base, "overhead": overhead}


def _median(spent: Sequence[Spent], name: str) -> float:
    return statistics.median(getattr(one, name) for one in spent)


def _differing(expected: Sequence[str], got: Sequence[str]) -> int | str:
    if not expected:
        return "-"  # that configuration was not run
    return sum(a != b for a, b in zip(expected, got, strict=True))


def _token_reductions(kind: str) -> list[str]:
    """Names of the methods that need neither trained modules nor another kind of model."""
    left_out = {"lvpruning", *(["downsample"] if kind == "llava" else [])}
    return [name for name, one in METHODS.items() if one.kind == "token reduction" and name not in left_out]


def limit(name: str, result: dict[str, Any], column: int) -> float:
    """The greatest ratio that a configuration could reach: the rival over what cannot be left out."""
    cost = {part: both[column] for part, both in result["seconds"].items()}
    n = result["n"]
    reuse, single = name.split(",")[0], name.endswith("batch 1")
    each, once = cost["whole"], 0.0
    if reuse == "vision":
        each, once = cost["rest" if single else "rest_batch"], cost["vision"]
    if reuse == "prefix":
        each, once = cost["question_batch"], cost["vision"] + cost["prefix"]
    return n * cost["lmms-eval"] / (once + n * (cost["document"] + each))


def workload_lines(results: Sequence[dict[str, Any]], peak: float | None) -> list[str]:
    """The table of one architecture."""
    lines = [
        "| questions | configuration | ms a question | ratio | limit | share | processor time: ratio, limit, share |"
        " target | answers that differ from the rival's, from ours with none | prefill, TFLOP/s |"
    ]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for result in results:
        rival = result["seconds"]["lmms-eval"]
        lines.append(f"| {result['workload']} | lmms-eval | {1e3 * rival[0]:.0f} | 1.00 | | | | | | |")
        for name, differing in result["differing"].items():
            wall, user = (rival[i] / result["seconds"][name][i] for i in (0, 1))
            most, most_user = limit(name, result, 0), limit(name, result, 1)
            differ = f"{differing}, {result['differing_from_none'][name]} of {result['documents']}"
            target = f"{result['targets'][name]:g}" if name in result["targets"] else ""
            lines.append(
                f"| {result['workload']} | {name} | {1e3 * result['seconds'][name][0]:.0f} | {wall:.2f} | {most:.2f} |"
                f" {100 * wall / most:.0f} % | {user:.2f}, {most_user:.2f}, {100 * user / most_user:.0f} % | {target} |"
                f" {differ} | {_rate(result['flops'].get(name), peak)} |"
            )
    return lines


def _rate(flops: float | None, peak: float | None) -> str:
    if flops is None:
        return ""
    share = f" ({100 * flops / 1e12 / peak:.0f} %)" if peak else ""
    return f"{flops / 1e12:.3g}{share}"


def parts_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    names = ("document", "whole", "rest", "rest_batch", "vision", "prefix", "question", "question_batch")
    lines = [f"| ms, wall and processor | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for result in results:
        cells = " | ".join("{:.0f}, {:.0f}".format(*(1e3 * one for one in result["seconds"][name])) for name in names)
        lines.append(f"| {result['workload']} | {cells} |")
    return lines


def method_lines(found: dict[str, Any]) -> list[str]:
    lines = ["| method | prefill of the language model, ratio to baseline | theory (`cost.py`) |", "|---|---:|---:|"]
    lines += [f"| {name} | {measured:.3f} | {theory:.3f} |" for name, (measured, theory) in found["methods"].items()]
    overhead = found["overhead"]
    lines += [
        "",
        f"The baseline's takes {1e3 * found['baseline_seconds']:.0f} ms. A method that keeps every token (FastV, r=0,"
        f" with hooks) costs {100 * overhead['median']:+.1f} % of a bare prefill's processor time (median,"
        f" best of each: {100 * overhead['best']:+.1f} %; target: at most {100 * OVERHEAD:g} %).",
    ]
    return lines


def machine(args: argparse.Namespace) -> str:
    """Processor, cores, versions and load; no names."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line] \
        if info.exists() else []  # fmt: skip
    device = torch.cuda.get_device_name() if args.device == "cuda" else names[0] if names else platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lmms-eval"))
    return (
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()},"
        f" {versions}; load average {os.getloadavg()[0]:.1f} at the start"
    )


def measure(name: str, args: argparse.Namespace, found: dict[str, Any], folder: Path) -> None:
    """Measure one section; every workload is written at once, in place of what was known of it."""
    if name == "methods":
        found[name] = {"machine": machine(args), **Bench("llava", args, folder).methods()}
        write(found, args)
        return
    bench = Bench(name, args, folder)
    for workload in workloads(name, list(bench.settings), quick=args.quick):
        if args.workloads and workload.name not in args.workloads:
            continue
        results = found.setdefault(name, {"results": {}})["results"]
        results[workload.name] = {"machine": machine(args), **bench.run(workload)}
        print("\n".join(workload_lines([results[workload.name]], args.peak_tflops)), flush=True)
        print("\n".join(parts_lines([results[workload.name]])), flush=True)
        write(found, args)


def write(found: dict[str, Any], args: argparse.Namespace) -> None:
    (args.output / "throughput.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.output / "throughput.md").write_text(report(found, args), encoding="utf-8")


def report(found: dict[str, Any], args: argparse.Namespace) -> str:
    """All sections as Markdown."""
    small, large = args.batches
    lines = [
        "# Throughput against lmms-eval's own models",
        "",
        f"Written by `benchmarks/throughput.py`: geometry `{args.geometry}`, {args.dtype} (qwen2_5_vl: bfloat16, which"
        f" its rival always loads), random weights, {args.tokens} generated tokens, images of 640 x 480 pixels as JPEG,"
        f" medians over interleaved rounds ({args.rounds}). *Ratio*: of times, the rival's over ours. *Limit*: that"
        " if only the bare passes of the model and the reading of documents took time; *share*: how much of it is"
        " reached. Where others keep the machine busy, only processor times mean something. Parts are per"
        " question or image: `whole` a bare `generate`, `rest` the same without the vision"
        f" tower, `_batch` in batches of {small} (rest) and up to {large} (question). Perturbed images: one of the"
        " paper's 96 levels each, the same for all questions about an image.",
        "",
    ]
    for name in (name for name in SECTIONS if name in found):
        one = found[name]
        title = "Token-reduction methods (LLaVA)" if name == "methods" else f"{name}: rival `{RIVALS[name]}`"
        lines += [f"## {title}", ""]
        if name == "methods":
            lines += [f"{one['machine']}.", "", *method_lines(one), ""]
            continue
        if name == "qwen2_vl":
            lines += ["The rival encodes images as JPEG once more, so it answers about other pictures than ours.", ""]
        results = list(one["results"].values())
        lines += [f"{results[0]['visual']} visual tokens and {results[0]['text']} others in a prompt.", ""]
        lines += [*workload_lines(results, args.peak_tflops), "", *parts_lines(results), ""]
        lines += [*(f"- {result['workload']}: {result['machine']}." for result in results), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", default=SECTIONS, help=f"of {', '.join(SECTIONS)}; none: only write")
    parser.add_argument("--workloads", nargs="+", help="only these, by name")
    parser.add_argument("--configurations", nargs="+", help="only these, by name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--geometry", choices=("tiny", "moderate", "7b"), default="moderate")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4, help="generated per answer, always")
    parser.add_argument("--batches", type=int, nargs=2, default=[8, 16], help="for reuse=vision and reuse=prefix")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the share that prefills reach")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--quick", action="store_true", help="tiny models, few documents, one round")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results", help="folder")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"--sections: there is no {', '.join(sorted(unknown))}")
    logger.remove()
    if args.quick:
        args.geometry, args.rounds, args.batches = "tiny", 1, [2, 4]
    if args.threads:
        torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    numbers = args.output / "throughput.json"
    found: dict[str, Any] = json.loads(numbers.read_text(encoding="utf-8")) if numbers.exists() else {}
    for name in args.sections:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, args, found, Path(folder))
    write(found, args)
    print(report(found, args))
    wrong = [
        f"{result['workload']}, {name}"
        for result in found.get("llava", {"results": {}})["results"].values()
        for name in EXACT
        if result["differing"].get(name)
    ]
    if wrong:
        raise SystemExit(f"answers differ from llava_hf's where they must not: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
