"""More feed-forward experts: a dense proxy becomes an MoE, an MoE a finer one.

Experts are made of shards of an old feed-forward: its hidden units cut into G parts.
A virtual group is one copy of each shard; all its experts share one router column, so
they score alike and a top-k that is a multiple of G takes whole groups.

Our gates are normalized over the chosen experts, so c groups of G shards with
probabilities p_j give `sum_j p_j / (G sum p) * FFN = FFN / G`: the experts' outputs are
multiplied by G, whatever k and the number of groups. The factor is split evenly between
the linear half of `up` and `down`. (The `(E G^2 / k)^(1/3)` of the source belongs to
softmax gates that are not normalized again, and to three factors per expert.) The
shared expert holds its own part of the hidden units and has gate 1: it is not scaled.

    D width, F hidden width, E feed-forward experts, G shards per old feed-forward

Source: METHODS 5: virtual groups after arXiv:2410.07524, scale-out after AquilaMoE,
arXiv:2408.06567, Drop-Upcycling after its authors' code, which draws a subset per
matrix; we draw one for all three, so that a unit is old or new as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .config import ProxyConfig

# AquilaMoE's and Drop-Upcycling's routers, far below our own start (1 / sqrt(width)): gates begin nearly equal.
_ROUTER_STD = 0.02


def scale_out(
    weights: Mapping[str, Tensor], target: ProxyConfig, *, shards: int, drop: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Turn the feed-forwards of a dense model into a shared expert and routed ones.

    Args:
        weights: {name: tensor} of the dense model, with `shared_width + shards *
            expert_width` hidden units per block.
        target: The MoE shape.
        shards: G; divides `experts` and `top_k`. 1 copies the routed part into every expert.
        drop: Share of every routed expert's hidden units that are drawn anew (Drop-
            Upcycling's r); at 0 the function is preserved.
        generator: Draws routers and units.
    """
    grown = dict(weights)
    for i in range(target.depth):
        block = f"blocks.{i}"
        gate, up = weights[f"{block}.shared.up"].chunk(2, dim=-1)
        parts = [gate.transpose(0, 1), up.transpose(0, 1), weights[f"{block}.shared.down"]]
        sizes = [target.shared_width, shards * target.expert_width]
        (shared, routed) = zip(*(part.split(sizes) for part in parts), strict=True)
        grown[f"{block}.shared.up"], grown[f"{block}.shared.down"] = _joined(*shared)
        columns = torch.randn(target.width, target.experts // shards, generator=generator) * _ROUTER_STD
        grown[f"{block}.moe.router"] = columns.repeat_interleave(shards, dim=1)
        experts = [_shard(routed, e % shards, shards, scale=shards) for e in range(target.experts)]
        experts = [_redrawn(expert, drop, generator) for expert in experts]
        ups, downs = zip(*(_joined(*expert) for expert in experts), strict=True)
        grown[f"{block}.moe.up"], grown[f"{block}.moe.down"] = torch.stack(ups), torch.stack(downs)
    return grown


def refine(
    weights: Mapping[str, Tensor], source: ProxyConfig, target: ProxyConfig, *, shards: int
) -> dict[str, Tensor]:
    """Replace every expert by virtual groups of its shards, m = E' / E = k' / k new experts in all.

    Preserves the function: the m experts of an old one score alike, so the new top-k
    takes all of them. Without shards these are m clones.

    Args:
        weights: {name: tensor} of an MoE with experts `shards` times as wide as the target's.
        source: Its shape.
        target: The finer shape.
        shards: G; divides m.
    """
    times = target.experts // source.experts
    # Unlike softmax gates, those of ReLU routing are not shared out among the clones.
    scale = shards if target.router == "topk" else shards / times
    grown = dict(weights)
    for i in range(target.depth):
        block = f"blocks.{i}.moe"
        experts = []
        for up, down in zip(weights[f"{block}.up"], weights[f"{block}.down"], strict=True):
            old = (*(half.transpose(0, 1) for half in up.chunk(2, dim=-1)), down)
            experts += [_joined(*_shard(old, e % shards, shards, scale=scale)) for e in range(times)]
        ups, downs = zip(*experts, strict=True)
        grown[f"{block}.up"], grown[f"{block}.down"] = torch.stack(ups), torch.stack(downs)
        grown[f"{block}.router"] = weights[f"{block}.router"].repeat_interleave(times, dim=1)
        if f"{block}.bias" in weights:
            # The softmax runs over m times as many: probabilities shrink, and what is added to them has to.
            grown[f"{block}.bias"] = weights[f"{block}.bias"].repeat_interleave(times) / times
    return grown


Parts = tuple[Tensor, ...]  # (F, D) rows per hidden unit: gate, up, down


def _shard(parts: Parts, number: int, shards: int, *, scale: float) -> Parts:
    gate, up, down = (part.chunk(shards)[number] for part in parts)
    return gate, math.sqrt(scale) * up, math.sqrt(scale) * down


def _joined(gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([gate, up]).transpose(0, 1), down


def _redrawn(expert: Parts, drop: float, generator: torch.Generator) -> Parts:
    """Draw some hidden units anew, the same in gate, up and down, with the mean and spread of what they replace."""
    hidden = expert[0].shape[0]
    units = torch.randperm(hidden, generator=generator)[: round(drop * hidden)]
    if not len(units):
        return expert
    redrawn = []
    for part in expert:
        old = part[units]
        draw = torch.randn(old.shape, generator=generator)
        redrawn.append(part.index_copy(0, units, old.mean() + old.std() * draw))
    gate, up, down = redrawn
    return gate, up, down
