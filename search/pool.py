"""Candidates: a finite set of runs an optimizer may buy, instead of the whole polytope.

A row is one run that can be bought: rows of a table of finished runs (replay), or a
user's own list. Rows with equal mixture and rung are replicates, bought one by one. A
pool keeps no state: what is left follows from the history. M rows, K domains.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mixopt.constraints import FEASIBILITY_TOLERANCE, Constraints
from mixopt.errors import ConfigError
from mixopt.fidelity import Ladder
from mixopt.mixture import Array, Mixture, readonly
from mixopt.observation import History, Role

Key = tuple[bytes, str]


@dataclass(frozen=True, eq=False)
class Pool:
    """Runs that can be bought.

    Attributes:
        domains: K names.
        weights: (M, K) mixtures, one row per run.
        fidelities: M rung names.
        prices: (M,) charges, in runs of the target.

    Raises:
        ConfigError: If the lengths differ.
    """

    domains: tuple[str, ...]
    weights: Array
    fidelities: tuple[str, ...]
    prices: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", readonly(self.weights))
        object.__setattr__(self, "prices", readonly(self.prices))
        rows = len(self.fidelities)
        if self.weights.shape != (rows, len(self.domains)) or self.prices.shape != (rows,):
            raise ConfigError(
                f"a pool of {rows} runs over {len(self.domains)} domains needs weights of that shape and one price "
                f"per run, got shapes {self.weights.shape} and {self.prices.shape}"
            )

    def __len__(self) -> int:
        return len(self.fidelities)

    def mixture(self, row: int) -> Mixture:
        """Return the mixture of a row."""
        return Mixture(self.domains, self.weights[row])

    def take(self, rows: Array) -> Pool:
        """Return the pool of some rows only."""
        chosen = [int(row) for row in rows]
        names = tuple(self.fidelities[row] for row in chosen)
        return Pool(self.domains, self.weights[chosen], names, self.prices[chosen])

    def within(self, constraints: Constraints) -> Pool:
        """Return the pool of the feasible runs.

        Raises:
            ConfigError: If there is none, or the domains differ.
        """
        if self.domains != constraints.domains:
            raise ConfigError(
                f"the pool must have the domains {', '.join(constraints.domains)} in this order, "
                f"got {', '.join(self.domains)}; build both from the same table"
            )
        inside = [i for i, w in enumerate(self.weights) if constraints.violation(w) <= FEASIBILITY_TOLERANCE]
        if not inside:
            raise ConfigError("no run of the pool satisfies the constraints; relax them or offer other runs")
        return self.take(np.array(inside))

    def without(self, weights: Array, fidelity: str) -> Pool:
        """Return the pool without the first run of a mixture at a rung."""
        key = _key(weights, fidelity)
        gone = next((i for i, name in enumerate(self.fidelities) if _key(self.weights[i], name) == key), None)
        return self.take(np.array([i for i in range(len(self)) if i != gone], dtype=int))

    def left(self, history: History) -> Array:
        """Return the indices of the rows not bought yet, in the pool's order.

        Of replicates, as many are gone as the history has search trials of that
        mixture and rung; the first of them go first.
        """
        bought: Counter[Key] = Counter(
            _key(trial.mixture.over(self.domains).weights, trial.fidelity) for trial in history.of(Role.SEARCH).trials
        )
        rows = []
        for row, (weights, fidelity) in enumerate(zip(self.weights, self.fidelities, strict=True)):
            key = _key(weights, fidelity)
            if bought[key] > 0:
                bought[key] -= 1
            else:
                rows.append(row)
        return np.array(rows, dtype=int)

    def targets(self, ladder: Ladder) -> Array:
        """Return the distinct mixtures of the target rung's rows, in order; of all rows if there are none."""
        chosen = [i for i, name in enumerate(self.fidelities) if name == ladder.target.name]
        points = self.weights[chosen] if chosen else self.weights
        _, first = np.unique(points, axis=0, return_index=True)
        return np.asarray(points[np.sort(first)])


def _key(weights: Array, fidelity: str) -> Key:
    return np.ascontiguousarray(weights, dtype=np.float64).tobytes(), fidelity
