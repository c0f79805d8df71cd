"""Fidelities: the rungs that can be trained, ordered by cost, and what they cost.

Rungs of one model shape nest: training to a rung passes all rungs below it, so one
run yields an observation at each, and a run can be continued to a higher rung.

Costs are nominal (FLOPs, or prices that the user declares, plus a fixed part per run)
in units of one run at the top rung, so that they are the same on every machine.
Measured seconds are recorded beside them and never decide anything by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Fidelity:
    """One rung of the ladder.

    Attributes:
        name: Unique within the ladder.
        model: Name of the model shape; rungs with equal `model` nest.
        num_params: Active parameters of the proxy.
        num_tokens: Training tokens.
        flops: Training FLOPs of one run from scratch.
        cost: Charge of one run from scratch, fixed part included; the top rung costs 1.
    """

    name: str
    model: str
    num_params: int
    num_tokens: int
    flops: float
    cost: float


@dataclass(frozen=True)
class Ladder:
    """All rungs, cheapest first; the last is the target.

    Attributes:
        rungs: The last is the target; trained ladders become dearer from first to last.
        fixed_cost: Part of every charge that does not depend on length, in top-rung runs.
    """

    rungs: tuple[Fidelity, ...]
    fixed_cost: float = 0.0

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ConfigError("ladder must have at least one rung; add one such as {name: top, tokens: 512000}")
        names = [rung.name for rung in self.rungs]
        if len(set(names)) != len(names):
            raise ConfigError(f"ladder: rung names must be unique, got {names}; rename one")
        free = [rung.name for rung in self.rungs if not (math.isfinite(rung.cost) and rung.cost > 0)]
        if free:
            raise ConfigError(f"ladder: costs must be positive and finite, that of {free[0]} is not; correct it")

    @classmethod
    def from_flops(
        cls,
        rungs: Sequence[tuple[str, str, int, int, float]],
        fixed_cost: float,
        *,
        prices: Sequence[float] | None = None,
    ) -> Ladder:
        """Price rungs given as (name, model, params, tokens, FLOPs); the last costs 1.

        Args:
            rungs: From the cheapest to the target.
            fixed_cost: Part of every charge that does not depend on length, in top-rung runs.
            prices: Price of a run to each rung, positive, in any unit; None: its FLOPs.

        Raises:
            ConfigError: If a rung is not dearer than the one before it.
        """
        paid = [flops for *_, flops in rungs] if prices is None else prices
        priced = [
            Fidelity(name, model, params, tokens, flops, fixed_cost + (1 - fixed_cost) * price / paid[-1])
            for (name, model, params, tokens, flops), price in zip(rungs, paid, strict=True)
        ]
        if any(b.cost <= a.cost for a, b in pairwise(priced)):
            remedy = "change tokens or depth" if prices is None else "correct their prices (ladder[].cost)"
            raise ConfigError(
                "ladder: rungs must become more expensive from first to last, got costs "
                f"{[round(rung.cost, 4) for rung in priced]}; reorder them or {remedy}"
            )
        return cls(tuple(priced), fixed_cost)

    def __iter__(self) -> Iterator[Fidelity]:
        return iter(self.rungs)

    def __len__(self) -> int:
        return len(self.rungs)

    def __getitem__(self, name: str) -> Fidelity:
        for rung in self.rungs:
            if rung.name == name:
                return rung
        names = [rung.name for rung in self.rungs]
        raise ConfigError(f"unknown rung {name!r}{did_you_mean(name, names)}; the ladder has {', '.join(names)}")

    @property
    def target(self) -> Fidelity:
        """The most expensive rung: what predictions and the recommendation are about."""
        return self.rungs[-1]

    def nested(self, name: str, *, above: str | None = None) -> tuple[Fidelity, ...]:
        """Return the rungs a run to `name` passes, itself last, beyond those of `above`."""
        end = self[name]
        start = self[above].num_tokens if above else -1
        return tuple(r for r in self.rungs if r.model == end.model and start < r.num_tokens <= end.num_tokens)

    def price(self, name: str, *, start: str | None = None) -> float:
        """Return the charge of a run to `name`, from scratch or continued from rung `start`."""
        if start is None:
            return self[name].cost
        return self[name].cost - self[start].cost + self.fixed_cost

    def cost_changes(self, new: Ladder) -> list[str]:
        """Describe in words how the costs of rungs that are in both ladders differ in `new`."""
        known = {rung.name: rung.cost for rung in self.rungs}
        return [
            f"rung {rung.name} costs {rung.cost:.4g} top-rung runs instead of {known[rung.name]:.4g}"
            for rung in new
            if rung.name in known and not math.isclose(rung.cost, known[rung.name], rel_tol=1e-9)
        ]

    def index(self, name: str) -> int:
        """Return the rung's number; the target has the last one."""
        return self.rungs.index(self[name])

    def position(self, name: str) -> float:
        """Return the rung's place on the log-cost axis: 0 the cheapest, 1 the dearest."""
        costs = [math.log(rung.cost) for rung in self.rungs]
        low, high = min(costs), max(costs)
        return 1.0 if high == low else (math.log(self[name].cost) - low) / (high - low)
