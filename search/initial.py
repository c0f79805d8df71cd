"""The first trials: what to train before the surrogate has anything of its own to say.

With a predictor: its optimum and a point half-way to the center at the target, which
measure the level; one run on every other model shape; then cheap runs, half of them
around the optimum and half space filling, which can be continued later. Without one:
the center at the target and space-filling cheap runs. One slot per trial, so that the
design does not depend on how it is split into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.fidelity import Ladder
from mixopt.mixture import Array

from . import simplex

AROUND_STRENGTH = 20.0  # Dirichlet concentration: a weight of 0.3 varies by about 0.1


@dataclass(frozen=True, eq=False)
class Slot:
    """One trial of the initial design.

    Attributes:
        weights: (K,) feasible weights.
        fidelity: Name of the rung.
        reason: Why, in words.
    """

    weights: Array
    fidelity: str
    reason: str


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
    anchor = center if optimum is None else optimum
    where = "the center of the feasible mixtures" if optimum is None else "the predictor's optimum"
    slots = [Slot(anchor, top.name, f"initial design: {where}, at the target")]
    if optimum is not None:
        slots.append(
            Slot(
                (optimum + center) / 2, top.name, "initial design: half-way from the predictor's optimum to the center"
            )
        )
    for model in dict.fromkeys(rung.model for rung in ladder if rung.model != top.model):
        other = [rung for rung in ladder if rung.model == model][-1]
        slots.append(Slot(anchor, other.name, f"initial design: {where}, on the model shape {model}"))
    rest = max(0, num - len(slots))
    cheapest = next(rung.name for rung in ladder if rung.model == top.model)
    filling = simplex.sobol(constraints, rest, seeding.derive(seed, "initial", "sobol") % 2**32)
    rng = seeding.generator(seed, "initial", "around")
    around = simplex.sample_around(anchor, AROUND_STRENGTH, constraints=constraints, num=rest, rng=rng)
    for index in range(rest):
        near = optimum is not None and index % 2 == 0
        reason = f"initial design: near {where}, cheap" if near else "initial design: space filling, cheap"
        slots.append(Slot(np.asarray((around if near else filling)[index]), cheapest, reason))
    return slots[:num]


def affordable(name: str, ladder: Ladder, budget: float) -> str | None:
    """Return the rung, or the next cheaper one of its model shape that the budget pays, or None."""
    wanted = ladder[name]
    fitting = [rung for rung in ladder if rung.model == wanted.model and rung.cost <= min(wanted.cost, budget + 1e-9)]
    return fitting[-1].name if fitting else None
