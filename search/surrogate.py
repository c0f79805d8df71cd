"""The surrogate: every column over (mixture, rung), with the predictor as prior mean.

One Gaussian process per column (`gp.py`), aggregated after prediction: 13 per-column
fits ranked unseen mixtures far better than one fit of the mean (METHODS 2.4). The
predictor's ranking is right while its level is not (PROXIES 5 and 6), hence

    y(w, f) = m(w) + shift(f) + slope * (m(w) - mean m) + residual(w, f) + trial + noise

in units of the column's scale: the spread of m over feasible mixtures. Without a
predictor m = 0 and the scale is the spread of y. Rungs correlate as exp(-|z - z'| / l),
so a rung that misleads is discounted but a negative correlation cannot be expressed.

M mixtures, N observations. Values are nats per token (or accuracies); scaled units
stay inside `Column`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mixopt.mixture import Array

from . import gp
from .encoding import Encoded, Encoder, Evidence

DEFAULT_SCALE = 0.2  # spread of a loss over Dirichlet mixtures, 0.1 to 0.5 nats per token (PROXIES 5)
RESIDUAL_WITH_PREDICTOR = 0.25  # what mean-shifted MDE leaves: 0.08 of 0.2 to 0.4 nats per token (PROXIES 5)
RESIDUAL_ALONE = 1.0


@dataclass(frozen=True)
class Units:
    """How a column's numbers and the process's are related.

    Attributes:
        index: Place among the predictor's columns, or None if it does not know this one.
        center: Mean of the predictor over feasible mixtures, or 0; column units.
        scale: Unit of the process, column units.
        offset: Level of the values less the prior mean, in scales.
    """

    index: int | None
    center: float
    scale: float
    offset: float = 0.0

    def rows(self, encoded: Encoded, positions: Tensor | float, groups: Tensor | float = gp.NO_TRIAL) -> Tensor:
        """Return (M, K+3) rows at rung positions (M,) for trial numbers (M,)."""
        num = len(encoded.inputs)
        columns = [self.prior(encoded), _full(positions, num), _full(groups, num)]
        return torch.cat([encoded.inputs, torch.stack(columns, dim=-1)], dim=-1)

    def prior(self, encoded: Encoded) -> Tensor:
        """Return (M,) centered and scaled predictions of the predictor, 0 without one."""
        if self.index is None:
            return torch.zeros(len(encoded.inputs), dtype=torch.float64)
        return (encoded.losses[:, self.index] - self.center) / self.scale


@dataclass(frozen=True, eq=False)
class Column:
    """One column's posterior, in the column's own units.

    Attributes:
        name: Such as `loss/code`.
        units: Relation to the process's units.
        posterior: The process, in scales.
    """

    name: str
    units: Units
    posterior: gp.Posterior

    @property
    def rows(self) -> Callable[..., Tensor]:
        """Encode mixtures, positions and trial numbers as this column's rows."""
        return self.units.rows

    def mean(self, rows: Tensor) -> Tensor:
        """Return (M,) posterior means, column units."""
        return self.mean_from(rows, self.posterior.kernel.forward(self.posterior.rows, rows))

    def mean_from(self, rows: Tensor, covariance: Tensor) -> Tensor:
        """Return `mean` given the (N, M) covariance of the observations with the rows."""
        return self.units.center + self.units.scale * (
            rows[:, -3] + self.units.offset + covariance.T @ self.posterior.dual
        )

    def std(self, rows: Tensor) -> Tensor:
        """Return (M,) posterior standard deviations of the seed average, column units."""
        return self.units.scale * self.posterior.variance(rows).sqrt()

    def samples(self, rows: Tensor, normals: Tensor) -> Tensor:
        """Return (S, M) joint posterior samples made of (S, M) standard normals, column units."""
        covariance = self.posterior.covariance(rows)
        jitter = 1e-8 + 1e-6 * covariance.diagonal().mean()
        factor: Tensor = torch.linalg.cholesky(covariance + jitter * torch.eye(len(rows), dtype=rows.dtype))
        return self.mean(rows) + self.units.scale * normals @ factor.T

    def believe(self, rows: Tensor) -> Column:
        """Condition on rows that are being observed, at their posterior means."""
        return replace(self, posterior=self.posterior.believe(rows))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """All columns given a history; each is fitted when it is first asked for.

    Attributes:
        encoder: From mixtures to rows.
        evidence: The rows to learn from.
    """

    encoder: Encoder
    evidence: Evidence
    _fitted: dict[str, Column] = field(default_factory=dict, init=False, repr=False)

    def column(self, name: str) -> Column:
        """Return a column's posterior; known to predictor or history or not."""
        if name not in self._fitted:
            self._fitted[name] = self._fit(name)
        return self._fitted[name]

    def with_evidence(self, evidence: Evidence) -> Surrogate:
        """Return the same fits for evidence with equal rows and other pending trials."""
        same = Surrogate(self.encoder, evidence)
        same._fitted.update(self._fitted)
        return same

    def known_columns(self) -> tuple[str, ...]:
        """Return the columns that the predictor knows or an observation has."""
        observed = dict.fromkeys(name for row in self.evidence.columns for name in row)
        return tuple(dict.fromkeys([*self.encoder.known, *observed]))

    def _fit(self, name: str) -> Column:
        index = self.encoder.known.index(name) if name in self.encoder.known else None
        # The predictor is exact at the experts by construction: they would teach it nothing but trust.
        chosen = self.evidence.select(name, experts=index is None)
        values = np.array([self.evidence.columns[i][name] for i in chosen])
        known = np.array([self.evidence.noise[i].get(name, 0.0) for i in chosen])
        positions = self.evidence.positions[chosen]
        units = Units(None, 0.0, _own_scale(values, positions))
        if index is not None:
            units = Units(index, float(self.encoder.centers[index]), float(self.encoder.scales[index]))
        encoded = self.encoder.encode(torch.tensor(self.evidence.weights[chosen]))
        rows = units.rows(encoded, torch.tensor(positions), torch.tensor(self.evidence.groups[chosen]))
        residuals = (torch.tensor(values) - units.center) / units.scale - rows[:, -3]
        if len(chosen):
            units = replace(units, offset=float(residuals[positions == positions.max()].mean()))
        mode = RESIDUAL_ALONE if index is None else RESIDUAL_WITH_PREDICTOR
        noise = torch.tensor((known / units.scale) ** 2)
        return Column(name, units, gp.fit(rows, residuals - units.offset, noise, residual_mode=mode))


def _full(value: Tensor | float, num: int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).expand(num)


def _own_scale(values: Array, positions: Array) -> float:
    """Return the pooled spread of values within rungs, or the default for too few of them."""
    deviations = [values[positions == z] - values[positions == z].mean() for z in np.unique(positions)]
    freedom = len(values) - len(deviations)
    if freedom < 2:
        return DEFAULT_SCALE
    return max(1e-3, float(np.sqrt(sum(float(d @ d) for d in deviations) / freedom)))
