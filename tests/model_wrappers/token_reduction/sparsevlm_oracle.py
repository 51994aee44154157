"""SparseVLM written down plainly, sharing nothing with the package: loops over layers, tokens and clusters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.model_wrappers.token_reduction.fastv_oracle import Oracle, attend, entering


def raters(visual: Tensor, text: Tensor) -> list[int]:
    """Return the places in ``text`` of the tokens that are more like the visual ones than the average."""
    shares = [0.0] * len(text)
    for token in visual:
        weights = [float(token @ word) for word in text]
        powers = [math.exp(weight - max(weights)) for weight in weights]
        for place, power in enumerate(powers):
            shares[place] += power / sum(powers) / len(visual)
    average = sum(shares) / len(shares)
    return [place for place, share in enumerate(shares) if share > average] or [len(text) - 1]


def cluster(tokens: Tensor, count: int) -> tuple[list[Tensor], list[int]]:
    """Return the averages of ``count`` clusters around density peaks, and the places of the peaks."""
    distance = [[float((one - other).norm()) / math.sqrt(len(one)) for other in tokens] for one in tokens]
    density = [math.exp(-sum(d * d for d in sorted(row)[:count]) / count) for row in distance]
    far = max(max(row) for row in distance)
    strength = []
    for place, row in enumerate(distance):
        denser = [d for d, other in zip(row, density, strict=True) if other > density[place]]
        strength.append(density[place] * min(denser, default=far))
    peaks = torch.tensor(strength).topk(count).indices.tolist()  # its order of ties is part of the method
    members: list[list[int]] = [[peak] for peak in peaks]
    for place, row in enumerate(distance):
        if place not in peaks:
            members[min(range(count), key=lambda index: row[peaks[index]])].append(place)
    return [tokens[group].sum(dim=0) / (len(group) + 1e-6) for group in members], peaks


@torch.no_grad()
def run(
    tiny: Any, inputs: dict[str, Any], keeps: dict[int, int], query: int, renumber: bool
) -> tuple[Oracle, list[int]]:
    """Answer one unpadded prompt that ends at column ``query``.

    ``keeps`` maps a layer to the number of tokens that stay after it, besides the merged ones. The number of visual
    tokens after each is returned too. A merged token goes by the column of its cluster's peak, which without
    ``renumber`` is also where it is.
    """
    hidden, full_cos, full_sin = entering(tiny, inputs)
    cos, sin, columns = full_cos, full_sin, list(range(len(hidden)))
    visual = [column for column in tiny.visual(inputs)[0].nonzero().squeeze(1).tolist() if column < query]
    begin = visual[-1] + 1
    rating = [begin + place for place in raters(hidden[visual], hidden[begin : query + 1])]
    counts, score = [len(visual)], {}
    for index, layer in enumerate(tiny.layers):
        output, weights = attend(layer, layer.input_layernorm(hidden), cos, sin)
        hidden = hidden + output
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if index not in keeps:
            continue
        rows = weights.mean(dim=0)[[columns.index(column) for column in rating]].mean(dim=0)
        score = {column: float(rows[columns.index(column)]) for column in visual}
        ranked = sorted(visual, key=lambda column: -score[column])
        stays, gone = set(ranked[: keeps[index]]), ranked[keeps[index] :]
        recycled = gone[: int(0.3 * len(gone)) + 1]
        merged, peaks = cluster(hidden[[columns.index(column) for column in recycled]], len(recycled) // 10 + 1)
        last = max(columns.index(column) for column in visual)
        features = dict(zip(columns, hidden, strict=True))
        new = [column for column in columns[: last + 1] if column not in visual or column in stays]
        new += [recycled[peak] for peak in peaks] + columns[last + 1 :]
        features.update(zip([recycled[peak] for peak in peaks], merged, strict=True))
        visual = [column for column in new if column in visual]
        columns, hidden = new, torch.stack([features[column] for column in new])
        chosen = list(range(len(new))) if renumber else new
        cos, sin = full_cos[chosen], full_sin[chosen]
        counts.append(len(visual))
    decoder = tiny.family.decoder(tiny.model)
    result = Oracle(tiny.model.lm_head(decoder.norm(hidden)), torch.tensor(columns), torch.tensor(list(score.values())))
    return result, counts
