"""Theoretical cost of a prompt: multiply-adds of its prefill and bytes of its KV cache, from counts of tokens.

With n tokens entering a decoder layer (visual tokens that are left, and all text), one multiply-add counted as one:

    FLOPs of the layer = 2 n d H h + 2 n d K h    queries and output, keys and values
                       + 2 n^2 H h                scores and their sum of values, the whole square
                       + c n d m                  the c matrices of the MLP
    bytes of its cache = 2 n K h b

d is the hidden size, m the MLP's, H and K the numbers of query and key heads, h their size, b the bytes of a number.
Where K = H and H h = d, as in LLaVA's language models, this is the 4 n d^2 + 2 n^2 d + c n d m of the papers; the form
above also holds for grouped keys (Qwen). FastV's paper counts c = 2 matrices; the models have c = 3 (gate, up, down).

Left out: the vision tower, the embedding, the head over the vocabulary and what a method itself computes. Cost is no
time: a decoding step hardly gets faster, and a prefill as much as these numbers only where arithmetic bounds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from math import nan
from typing import Any


@dataclass(frozen=True)
class Geometry:
    """Sizes of a language model.

    Attributes:
        layers: decoder layers.
        hidden, intermediate: widths of the residual stream and of the MLP.
        heads, kv_heads: query heads, and key heads (fewer where several query heads share one).
        head_dim: size of a head.
        bytes_per_element: of a number in the KV cache: 2 for float16 and bfloat16.
        mlp_matrices: matrices of the MLP that count, c above.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    bytes_per_element: int = 2
    mlp_matrices: int = 3

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Geometry | None:
        """Read what a model of this package logs about its run; None where it says nothing, or no whole numbers."""
        logged = facts.get("geometry")
        names = [item.name for item in fields(cls)]
        if not isinstance(logged, Mapping) or any(not _is_count(logged.get(name)) for name in names):
            return None
        return cls(**{name: logged[name] for name in names})

    def flops(self, tokens: int, squares: int) -> int:
        """Multiply-adds of layers that see `tokens` tokens in all, `squares` being the sum of their squares."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        mlp = self.mlp_matrices * self.hidden * self.intermediate
        return tokens * (attention + mlp) + squares * 2 * self.heads * self.head_dim

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of keys and values of layers that see `tokens` tokens in all."""
        return tokens * 2 * self.kv_heads * self.head_dim * self.bytes_per_element


@dataclass(frozen=True)
class Cost:
    """Cost of one prompt, or the mean over prompts, as it was and with all its visual tokens in every layer."""

    flops: float
    kv_bytes: float
    unpruned_flops: float
    unpruned_kv_bytes: float

    @property
    def flops_ratio(self) -> float:
        return self.flops / self.unpruned_flops if self.unpruned_flops else nan

    @property
    def kv_ratio(self) -> float:
        return self.kv_bytes / self.unpruned_kv_bytes if self.unpruned_kv_bytes else nan

    def record(self) -> dict[str, float]:
        """The numbers by their names in every output."""
        return {
            "prefill_flops": self.flops,
            "prefill_flops_ratio": self.flops_ratio,
            "kv_bytes": self.kv_bytes,
            "kv_bytes_ratio": self.kv_ratio,
        }


#: Of logs that do not say what it takes.
NO_COST = Cost(nan, nan, nan, nan)


def describe(cost: Cost) -> str:
    """Say in words what a prompt costs, and which share that is of its cost with all visual tokens in every layer."""
    return (
        f"prefill {_si(cost.flops)}FLOPs (×{cost.flops_ratio:.3f} of unpruned), "
        f"KV cache {cost.kv_bytes / 2**20:.3g} MiB (×{cost.kv_ratio:.3f})"
    )


def _si(value: float) -> str:
    """A number with three digits and the prefix of its unit: 4.53 T."""
    prefix, unit = next(pair for pair in _PREFIXES if value >= pair[1] or pair[1] == 1)
    return f"{value / unit:.3g} {prefix}"


_PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of several costs, nan where one is; its ratios are those of the means."""
    return Cost(*(sum(values) / len(costs) for values in zip(*map(astuple, costs), strict=True)))


def layer_inputs(layers: int, stage_layers: Sequence[int], visual_tokens: Sequence[int]) -> list[int]:
    """Return the visual tokens that enter each decoder layer: 4, [0, 2], [576, 288] -> [576, 576, 288, 288].

    Args:
        layers: decoder layers of the model.
        stage_layers: layers at whose input tokens were counted, not descending; the first is 0. Of several counts at
            one layer the last holds (a method before the language model acts at layer 0).
        visual_tokens: the counts.

    Raises:
        ValueError: Stages and counts do not fit each other or the model.
    """
    if not _fit(stage_layers, visual_tokens) or stage_layers[-1] >= layers:
        raise ValueError(f"{list(visual_tokens)} visual tokens at layers {list(stage_layers)} of {layers}")
    ends = [*stage_layers[1:], layers]
    return [n for n, start, end in zip(visual_tokens, stage_layers, ends, strict=True) for _ in range(start, end)]


def kept_share(layers: int, stage_layers: Sequence[Any], visual_tokens: Sequence[Any]) -> float:
    """Return the visual tokens that enter a layer, mean over layers, as a share of the prompt's.

    Args:
        layers, stage_layers, visual_tokens: as in `layer_inputs`, but whatever a log may hold.

    Returns:
        nan where these are no counts, or do not fit each other or the model, and for a prompt without visual tokens.
    """
    if not _fit(stage_layers, visual_tokens) or stage_layers[-1] >= layers or not visual_tokens[0]:
        return nan
    entering = sum(layer_inputs(layers, stage_layers, visual_tokens))
    return float(entering / (layers * visual_tokens[0]))


def prefill_cost(geometry: Geometry, stage_layers: Sequence[int], visual_tokens: Sequence[int], text: int) -> Cost:
    """Return the cost of one prompt.

    Args:
        geometry: of the language model.
        stage_layers, visual_tokens: as in `layer_inputs`; the first count is that of the prompt.
        text: all other tokens of the prompt.

    Raises:
        ValueError: See `layer_inputs`.
    """
    lengths = [n + text for n in layer_inputs(geometry.layers, stage_layers, visual_tokens)]
    tokens, whole = sum(lengths), (visual_tokens[0] + text) * geometry.layers
    return Cost(
        geometry.flops(tokens, sum(n * n for n in lengths)),
        geometry.kv_bytes(tokens),
        geometry.flops(whole, (visual_tokens[0] + text) * whole),
        geometry.kv_bytes(whole),
    )


@dataclass
class TokenTotals:
    """Sums over the prompts of a log, small however long it is, from which their mean cost follows for any model.

    A sum over layers of a function of the tokens that enter them is linear in the number of layers, which a line of the
    log does not say: so each sum is kept as a constant and a factor of that number.
    """

    prompts: int = 0
    last_stage: int = 0  # the deepest layer at which tokens were counted
    tokens: tuple[int, int] = (0, 0)
    squares: tuple[int, int] = (0, 0)
    whole: int = 0
    whole_squares: int = 0

    def add(self, measured: Mapping[str, Any]) -> None:
        """Add one answer's measurements, if they have what it takes: counts of visual tokens, their layers, tokens."""
        visual, stages = measured.get("visual_tokens"), measured.get("visual_token_layers")
        if type(visual) is not list or type(stages) is not list:
            return
        try:
            one = _totals(measured.get("input_tokens"), tuple(visual), tuple(stages))
        except TypeError:  # something in a list that cannot be hashed is no number
            return
        if one is None:
            return
        self.prompts += 1
        self.last_stage = max(self.last_stage, one.last_stage)
        self.tokens = (self.tokens[0] + one.tokens[0], self.tokens[1] + one.tokens[1])
        self.squares = (self.squares[0] + one.squares[0], self.squares[1] + one.squares[1])
        self.whole += one.whole
        self.whole_squares += one.whole_squares

    def mean_cost(self, geometry: Geometry | None) -> Cost:
        """Return the mean over the prompts; nan for no prompt, no geometry, or layers that the model does not have."""
        if geometry is None or not self.prompts or self.last_stage >= geometry.layers:
            return NO_COST
        depth, n = geometry.layers, self.prompts
        tokens, squares = (constant + depth * factor for constant, factor in (self.tokens, self.squares))
        return Cost(
            geometry.flops(tokens, squares) / n,
            geometry.kv_bytes(tokens) / n,
            geometry.flops(depth * self.whole, depth * self.whole_squares) / n,
            geometry.kv_bytes(depth * self.whole) / n,
        )


@lru_cache(maxsize=4096)
def _totals(length: Any, visual: tuple[Any, ...], stages: tuple[Any, ...]) -> TokenTotals | None:
    """The sums of one prompt of `length` tokens; None when these are no counts, or do not fit each other."""
    if not _fit(stages, visual) or not _is_count(length) or length < max(visual):
        return None
    text = length - visual[0]
    lengths = [n + text for n in visual]
    constants = [sum(values) for values in zip(*_constants(stages, lengths), strict=True)]
    return TokenTotals(1, stages[-1], (constants[0], lengths[-1]), (constants[1], lengths[-1] ** 2), length, length**2)


def _constants(stages: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """What the sums of tokens and of squares are beside depth times the last stage's: all stages but the last."""
    ends = [*stages[1:], 0]
    return [((end - start) * n, (end - start) * n * n) for start, end, n in zip(stages, ends, lengths, strict=True)]


def _fit(stages: Sequence[Any], visual: Sequence[Any]) -> bool:
    """Whether these are counts, one per stage, of stages that begin with layer 0 and do not descend."""
    counts = bool(stages) and len(stages) == len(visual) and all(map(_is_count, (*stages, *visual)))
    return counts and stages[0] == 0 and list(stages) == sorted(stages)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40
