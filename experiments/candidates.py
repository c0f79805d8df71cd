"""Candidates: a user's list of runs that can be trained, as a pool whose rows have names.

An optimizer sees the pool; a proposal is led back to the row it stands for, so that the
user gets the exact mixture and the name of the row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixopt.constraints import Constraints
from mixopt.errors import ConfigError
from mixopt.fidelity import Ladder
from mixopt.mixture import Mixture
from mixopt.observation import History
from mixopt.proposal import Proposal
from mixopt.runs import RunsTable
from mixopt.search.pool import Pool

logger = logging.getLogger(__name__)

_SAME_WEIGHT = 1e-6  # an optimizer may round weights


@dataclass(frozen=True, eq=False)
class Candidates:
    """Runs that can be trained.

    Attributes:
        pool: The runs, priced as the ladder says.
        runs: Their names in the user's table.
    """

    pool: Pool
    runs: tuple[str, ...]

    @classmethod
    def of(cls, table: RunsTable, ladder: Ladder, constraints: Constraints) -> Candidates:
        """Take the rows that satisfy the constraints; the others are dropped with a warning.

        Raises:
            ConfigError: If a row has an unknown rung or domain, or none satisfies the constraints.
        """
        mixtures = [_mixture(table, row, constraints.domains) for row in range(len(table))]
        prices = np.array([ladder.price(name) for name in table.fidelities])
        rows = [row for row, mixture in enumerate(mixtures) if constraints.allows(mixture)]
        if not rows:
            raise ConfigError("candidates: none satisfies the constraints; relax them or give others")
        if len(rows) < len(table):
            logger.warning("candidates dropped num=%d; they violate the constraints", len(table) - len(rows))
        pool = Pool(
            constraints.domains,
            np.stack([mixtures[row].weights for row in rows]),
            tuple(table.fidelities[row] for row in rows),
            prices[rows],
        )
        return cls(pool, tuple(table.runs[row] for row in rows))

    def named(self, proposals: Sequence[Proposal], history: History) -> tuple[list[Proposal], list[str]]:
        """Return proposals with the exact mixtures of their rows, and the names of the rows."""
        left = [int(row) for row in self.pool.left(history)]
        rows = []
        for proposal in proposals:
            row = self._row(proposal, left)
            left.remove(row)
            rows.append(row)
        exact = [replace(p, mixture=self.pool.mixture(row)) for p, row in zip(proposals, rows, strict=True)]
        return exact, [self.runs[row] for row in rows]

    def _row(self, proposal: Proposal, left: Sequence[int]) -> int:
        weights = proposal.mixture.over(self.pool.domains).weights
        near = np.abs(self.pool.weights - weights).max(axis=1) <= _SAME_WEIGHT
        row = next((i for i in left if near[i] and self.pool.fidelities[i] == proposal.fidelity), None)
        assert row is not None, f"{proposal.proposed_by} proposed what is not among the candidates"
        return row


def _mixture(table: RunsTable, row: int, domains: Sequence[str]) -> Mixture:
    try:
        return Mixture(table.domains, table.weights[row]).over(domains)
    except ValueError as error:
        raise ConfigError(f"candidates, run {table.runs[row]!r}: {error}") from error
