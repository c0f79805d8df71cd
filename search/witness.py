"""What a target run would tell of the cheap rungs: whether they know anything of the target.

Columns are predicted twice, with the links as believed and with none. If the cheap rungs
do know the target, a run at mixture w is expected to speak for them by

    sum_j KL( N(m_j, v_j) || N(m0_j, v0_j) )  nats

where (m_j, v_j) are mean and variance of what column j would show with the links, (m0_j,
v0_j) without, noise included: the expected log Bayes factor (Kullback and Leibler 1951).
Many columns tell much, also where the run's objective is as good as any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import gp
from .encoding import Encoder
from .surrogate import Column


@dataclass(frozen=True, eq=False)
class Witness:
    """The columns whose links are learned together, with links and without.

    Attributes:
        encoder: From mixtures to rows.
        columns: J posteriors, links as believed.
        unlinked: The same posteriors without links.
    """

    encoder: Encoder
    columns: tuple[Column, ...]
    unlinked: tuple[Column, ...] = field(init=False)

    def __post_init__(self) -> None:
        none = torch.zeros(self.columns[0].target, dtype=torch.float64)
        object.__setattr__(self, "unlinked", tuple(column.linked(none) for column in self.columns))

    def nats(self, weights: Tensor) -> Tensor:
        """Return (B,) what target runs of (B, K) mixtures are expected to say for the links."""
        encoded = self.encoder.encode(weights)
        total = torch.zeros(len(weights), dtype=torch.float64)
        for believed, unlinked in zip(self.columns, self.unlinked, strict=True):
            rows = believed.rows(encoded, believed.target)
            (m, v), (m0, v0) = _shown(believed, rows), _shown(unlinked, rows)
            total += 0.5 * ((v0 / v).log() + (v + (m - m0).square()) / v0 - 1)
        return total

    def believe(self, weights: Tensor, rungs: Tensor, group: float) -> Witness:
        """Add a pending run of (K,) weights that will be observed at some rungs; without links it shows the same."""
        encoded = self.encoder.encode(weights.expand(len(rungs), -1))
        return Witness(self.encoder, tuple(column.believe(encoded, rungs, group) for column in self.columns))


def _shown(column: Column, rows: gp.Prepared) -> tuple[Tensor, Tensor]:
    """Return means and variances of what runs would show."""
    noise = column.deviation**2 * column.posterior.kernel.noise(rows)
    return column.mean(rows), column.std(rows).square() + noise
