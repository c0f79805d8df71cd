"""The first trials: what to train before the surrogate has anything of its own to say.

With a predictor: its optimum and a point half-way to the center at the target, which
measure the level; one run on every other model shape; then cheap runs, half of them
around the optimum and half space filling, which can be continued later. Without one: a
block of space-filling runs at the cheapest rung, of a list a random part. One slot per
trial, so that the design does not depend on how it is split into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.fidelity import Ladder
from mixopt.mixture import Array

from . import simplex
from .pool import Pool

BLOCK_SHARE = 0.5  # of a target run: what the block may cost, so that the first target run is not late
BLOCK_PER_DOMAIN = 2  # runs per degree of freedom of a law that is linear in the weights
FEWEST = 2
AROUND_STRENGTH = 20.0  # Dirichlet concentration: a weight of 0.3 varies by about 0.1


@dataclass(frozen=True, eq=False)
class Slot:
    """One trial of the initial design.

    Attributes:
        weights: (K,) feasible weights.
        fidelity: Name of the rung.
        reason: Why, in words.
        price: Charge of a listed run, in target runs; None where the rung's applies.
    """

    weights: Array
    fidelity: str
    reason: str
    price: float | None = None


def initial_design(
    num: int, *, constraints: Constraints, ladder: Ladder, optimum: Array | None, center: Array, seed: int
) -> list[Slot]:
    """Return `num` slots.

    Args:
        num: Size of the design.
        constraints: The polytope.
        ladder: All rungs.
        optimum: (K,) weights the predictor thinks best, or None.
        center: (K,) feasible reference or interior point.
        seed: Root seed.
    """
    top = ladder.target
    if optimum is None:
        return _block(num, constraints=constraints, ladder=ladder, seed=seed)
    where = "the predictor's optimum"
    slots = [
        Slot(optimum, top.name, f"initial design: {where}, at the target"),
        Slot((optimum + center) / 2, top.name, "initial design: half-way from the predictor's optimum to the center"),
    ]
    for model in dict.fromkeys(rung.model for rung in ladder if rung.model != top.model):
        other = [rung for rung in ladder if rung.model == model][-1]
        slots.append(Slot(optimum, other.name, f"initial design: {where}, on the model shape {model}"))
    rest = max(0, num - len(slots))
    cheapest = next(rung.name for rung in ladder if rung.model == top.model)
    filling = simplex.sobol(constraints, rest, seeding.derive(seed, "initial", "sobol") % 2**32)
    rng = seeding.generator(seed, "initial", "around")
    around = simplex.sample_around(optimum, AROUND_STRENGTH, constraints=constraints, num=rest, rng=rng)
    for index in range(rest):
        near = index % 2 == 0
        reason = f"initial design: near {where}, cheap" if near else "initial design: space filling, cheap"
        slots.append(Slot(np.asarray((around if near else filling)[index]), cheapest, reason))
    return slots[:num]


def block_size(num_domains: int, ladder: Ladder) -> int:
    """Return how many runs to start with where nothing is predicted."""
    cheapest = min(rung.cost for rung in ladder)
    most = BLOCK_PER_DOMAIN * (num_domains + 1)
    return max(FEWEST, min(most, int(BLOCK_SHARE * ladder.target.cost / cheapest)))


def listed_design(num: int, *, pool: Pool, left: Array, ladder: Ladder, seed: int) -> list[Slot]:
    """Return `num` slots drawn at random from a list's runs at its cheapest rung.

    Args:
        num: Size of the design.
        pool: The list; the order of drawing depends on it alone.
        left: Indices of its runs that are not bought yet.
        ladder: All rungs.
        seed: Root seed.
    """
    names = np.array(pool.fidelities)
    rung = next(rung.name for rung in sorted(ladder, key=lambda rung: rung.cost) if (names == rung.name).any())
    rows = np.flatnonzero(names == rung)
    order, there = seeding.generator(seed, "initial", "listed").permutation(rows), set(left.tolist())
    drawn = [row for row in order if row in there]
    reason = "initial design: random, cheap"
    return [Slot(pool.weights[row], rung, reason, float(pool.prices[row])) for row in drawn[:num]]


def _block(num: int, *, constraints: Constraints, ladder: Ladder, seed: int) -> list[Slot]:
    rung = min(ladder, key=lambda rung: rung.cost).name
    points = simplex.sobol(constraints, num, seeding.derive(seed, "initial", "sobol") % 2**32)
    return [Slot(np.asarray(point), rung, "initial design: space filling, cheap") for point in points]


def affordable(name: str, ladder: Ladder, budget: float) -> str | None:
    """Return the rung, or the next cheaper one of its model shape that the budget pays, or None."""
    wanted = ladder[name]
    fitting = [rung for rung in ladder if rung.model == wanted.model and rung.cost <= min(wanted.cost, budget + 1e-9)]
    return fitting[-1].name if fitting else None
