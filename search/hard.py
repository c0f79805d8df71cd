"""Tables of runs on which a multi-fidelity search can lose: cheap rungs that mislead, noise, dull mixtures.

Synthetic ones are drawn from a law that no surrogate here assumes: domains substitute
for each other with falling returns, a power law in what they are worth together, and a
saturating harm. Semi-synthetic ones twist a table of real runs. What an optimizer must
not do on them is lose to random or to a search of the target rung alone.

N rows, K domains, J columns. Costs are in runs of the target, the last rung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixopt import seeding
from mixopt.errors import ConfigError
from mixopt.mixture import Array
from mixopt.runs_table import RunsTable

TARGET = "top"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class HardCase:
    """What is hard about a synthetic table.

    Attributes:
        why: In words.
        num_domains: K.
        num_columns: J.
        prices: Costs of the rungs below the target.
        likeness: Their correlations with the target over the pool's mixtures, noise apart, per column.
        num_rows: Rows of these rungs and of the target, last.
        noise: Share of a column's variance at a rung that is noise.
        mixtures: `dirichlet`, `dense` (all weights within a factor of three of uniform) or `sparse`.
        nested: Whether the target's mixtures were run at every rung, else no mixture twice.
        kind: `loss` or `score`.
    """

    why: str
    num_domains: int = 10
    num_columns: int = 4
    prices: tuple[float, ...] = (0.05,)
    likeness: tuple[float, ...] = (0.9,)
    num_rows: tuple[int, ...] = (60, 40)
    noise: float = 0.05
    mixtures: str = "dirichlet"
    nested: bool = True
    kind: str = "loss"

    @property
    def objective(self) -> str:
        """What is minimized: the mean of all columns."""
        return f"mean({self.kind}/*)"


HARD_CASES: Mapping[str, HardCase] = {
    "uncorrelated": HardCase("the cheap rung says nothing of the target", likeness=(0.0,)),
    "anti-correlated": HardCase("what is good at the cheap rung is bad at the target", likeness=(-0.8,)),
    "dear-rungs": HardCase(
        "cheap rungs at a fifth and half of the target's price",
        prices=(0.2, 0.5), likeness=(0.7, 0.9), num_rows=(50, 40, 40),
    ),
    "noisy": HardCase("half of the variance is noise", noise=0.5),
    "dense": HardCase("all weights within a factor of three of uniform", 12, mixtures="dense", noise=0.25),
    "sparse": HardCase("most weights are zero", 17, mixtures="sparse"),
    "accuracies": HardCase("scores instead of losses", 8, 5, likeness=(0.7,), noise=0.3, kind="score"),
    "nested": HardCase("the target's mixtures were all run at every rung", num_rows=(40, 40), likeness=(0.8,)),
    "disjoint": HardCase("no mixture was run at two rungs", nested=False, likeness=(0.8,)),
    "dear-dense-noisy": HardCase(
        "accuracies of dense mixtures, half of it noise, with dear cheap rungs that hardly correlate",
        17, 6, (0.2, 0.5), (0.1, 0.4), (50, 40, 50), 0.5, "dense", kind="score",
    ),
}  # fmt: skip


def hard_case(name: str, seed: int) -> RunsTable:
    """Draw a synthetic table.

    Args:
        name: A key of HARD_CASES.
        seed: Of mixtures, law and noise.

    Raises:
        ConfigError: If there is no such case.
    """
    if name not in HARD_CASES:
        raise ConfigError(f"unknown hard case {name!r}; known are {', '.join(HARD_CASES)}")
    case, rng = HARD_CASES[name], seeding.generator(seed, "hard", name)
    points = _MIXTURES[case.mixtures](rng, _num_mixtures(case), case.num_domains)
    chosen = _rows(case)
    truth = np.stack([_standardized(_law(rng, points)) for _ in range(case.num_columns)], axis=1)
    likeness = (*case.likeness, 1.0)
    values = [
        _noisy(rng, _like(rng, points, truth, like), case.noise)[rows]
        for like, rows in zip(likeness, chosen, strict=True)
    ]
    names = [*(f"low{i}" for i in range(len(case.prices))), TARGET]
    counts = [len(rows) for rows in chosen]
    return RunsTable(
        domains=tuple(f"d{i}" for i in range(case.num_domains)),
        runs=tuple(f"{i}@{rung}" for rung, rows in zip(names, chosen, strict=True) for i in rows),
        fidelities=tuple(np.repeat(names, counts).tolist()),
        weights=points[np.concatenate(chosen)],
        columns=_columns(case, values),
        costs=np.repeat([*case.prices, 1.0], counts),
    )


def twisted(table: RunsTable, target: str, twist: str, seed: int) -> RunsTable:
    """Draw 60 runs below the target and 40 at it from a real table, and make them hard.

    Args:
        table: Real runs at the target and at least one rung below.
        target: Name of the target rung.
        twist: A key of TWISTS.
        seed: Of the choice of rows and the twist.

    Raises:
        ConfigError: If there is no such twist.
    """
    if twist not in TWISTS:
        raise ConfigError(f"unknown twist {twist!r}; known are {', '.join(TWISTS)}")
    rng = seeding.generator(seed, "twisted", twist)
    at_target = np.array(table.fidelities) == target
    low, high = np.flatnonzero(~at_target), np.flatnonzero(at_target)
    rows = np.concatenate([rng.permutation(low)[:60], rng.permutation(high)[:40]])
    return TWISTS[twist](rng, table.select(rows), ~at_target[rows])


def at_rung(table: RunsTable, rung: str) -> RunsTable:
    """Return the rows of one rung: what a search without cheap runs sees."""
    return table.select(np.flatnonzero(np.array(table.fidelities) == rung))


def _law(rng: np.random.Generator, points: Array) -> Array:
    """Draw a loss over mixtures: (c + worth)^-alpha, worth of substitutes with falling returns, plus harm."""
    num_domains = points.shape[1]
    use = np.asarray(rng.gamma(0.4, 1.0, num_domains))
    returns, alpha = rng.uniform(0.4, 0.9), rng.uniform(0.2, 0.8)
    worth = (points**returns @ (use / use.sum())) ** (1 / returns)
    harm = rng.dirichlet(np.full(num_domains, 0.5))
    signal = _standardized((0.02 + worth) ** -alpha)
    return np.asarray(signal + 0.5 * np.tanh(1.5 * _standardized(points @ harm)), dtype=np.float64)


def _like(rng: np.random.Generator, points: Array, truth: Array, likeness: float) -> Array:
    """Return columns with this correlation to the truth, exactly, over the pool; unlike parts touch no true column."""
    if likeness == 1.0:
        return truth
    other = np.stack([_standardized(_law(rng, points)) for _ in range(truth.shape[1])], axis=1)
    other = other - truth @ np.linalg.lstsq(truth, other, rcond=None)[0]
    return np.asarray(likeness * truth + np.sqrt(1 - likeness**2) * other / other.std(0))


def _noisy(rng: np.random.Generator, values: Array, share: float) -> Array:
    return np.asarray(values + np.sqrt(share / (1 - share)) * rng.standard_normal(values.shape))


def _columns(case: HardCase, values: list[Array]) -> dict[str, Array]:
    """Put standardized values on the scale of losses (nats per token) or accuracies, lower rungs worse."""
    worse = np.concatenate([np.full(len(v), float(len(values) - 1 - rung)) for rung, v in enumerate(values)])
    stacked = np.concatenate(values)
    if case.kind == "score":
        shown = 0.25 + 0.6 / (1 + np.exp(stacked + 0.5 * worse[:, None]))
    else:
        shown = 2.5 + 0.8 * worse[:, None] + (0.1 + 0.05 * worse[:, None]) * stacked
    return {f"{case.kind}/c{j}": shown[:, j] for j in range(case.num_columns)}


def _num_mixtures(case: HardCase) -> int:
    return max(case.num_rows) if case.nested else sum(case.num_rows)


def _rows(case: HardCase) -> list[list[int]]:
    """Return which mixtures each rung ran; where they nest all rungs begin with the same."""
    if case.nested:
        return [list(range(count)) for count in case.num_rows]
    ends = np.cumsum(case.num_rows).tolist()
    return [list(range(end - count, end)) for end, count in zip(ends, case.num_rows, strict=True)]


def _dirichlet(rng: np.random.Generator, num: int, num_domains: int) -> Array:
    return rng.dirichlet(np.ones(num_domains), num)


def _dense(rng: np.random.Generator, num: int, num_domains: int) -> Array:
    """Factors of at most sqrt(3) either way, so that normalizing leaves at most 3."""
    return _normalized(np.exp(rng.uniform(-0.5, 0.5, (num, num_domains)) * np.log(3.0)))


def _sparse(rng: np.random.Generator, num: int, num_domains: int) -> Array:
    draws = rng.dirichlet(np.full(num_domains, 0.15), num)
    return _normalized(np.where(draws < 0.02, 0.0, draws))


def _normalized(points: Array) -> Array:
    return np.asarray(points / points.sum(1, keepdims=True), dtype=np.float64)


def _standardized(values: Array) -> Array:
    return np.asarray((values - values.mean(0)) / values.std(0), dtype=np.float64)


def _shuffled(rng: np.random.Generator, table: RunsTable, low: Mask) -> RunsTable:
    """Give the lower rungs each other's results."""
    rows, order = np.flatnonzero(low), np.arange(len(table))
    order[rows] = rng.permutation(rows)
    return replace(table, columns={name: values[order] for name, values in table.columns.items()})


def _mirrored(rng: np.random.Generator, table: RunsTable, low: Mask) -> RunsTable:
    """Mirror the lower rungs' results about their means."""
    return replace(
        table,
        columns={name: np.where(low, 2 * v[low].mean() - v, v) for name, v in table.columns.items()},
    )


def _disturbed(rng: np.random.Generator, table: RunsTable, low: Mask) -> RunsTable:
    """Add noise of each rung's own variance to every column."""
    columns = {}
    for name, values in table.columns.items():
        scale = np.where(low, values[low].std(), values[~low].std())
        columns[name] = values + scale * rng.standard_normal(len(values))
    return replace(table, columns=columns)


def _dear(rng: np.random.Generator, table: RunsTable, low: Mask) -> RunsTable:
    """Let the lower rungs cost a fifth of a target run."""
    target = table.costs[~low].mean()
    return replace(table, costs=np.where(low, 0.2 * target, table.costs))


TWISTS: Mapping[str, Callable[[np.random.Generator, RunsTable, Mask], RunsTable]] = {
    "shuffled": _shuffled,
    "mirrored": _mirrored,
    "disturbed": _disturbed,
    "dear": _dear,
}
_MIXTURES: Mapping[str, Callable[[np.random.Generator, int, int], Array]] = {
    "dirichlet": _dirichlet,
    "dense": _dense,
    "sparse": _sparse,
}
