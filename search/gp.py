"""One Gaussian process for one column over (mixture, rung, trial): kernel, MAP fit, algebra.

Rows are encoded inputs, one per observation:

    [x_1 .. x_2K | w_1 .. w_K | m | r | g]   x log and root weights, scaled; w weights,
                               centered and scaled; m the predictor's centered and scaled
                               loss; r the rung's number; g the trial's number

Values are in units of the column's scale, the predictor and a level per rung subtracted.
The covariance is, with T the target rung and z the rungs' positions in [0, 1],

    16 + 4 exp(-|z - z'|)                             shift, common and per rung
    + 0.1 m m' C(r, r')                               slope deviation
    + a_r a_r' C(r, r') [Matern-5/2(x, x') + v^2 w.w']   residual
    + s_t^2 [g = g' >= 0] exp(-|z - z'|)              trial effect
    + [same row] s_r^2                                noise

    C(r, r') = p_r p_r' + (c + (1 - c) [r = r']) sqrt(1 - p_r^2) sqrt(1 - p_r'^2),   p_T = 1

with a_r = amplitude * stretch_r, so that a rung without rows is scaled like the others, and
so that p_r in (-1, 1) is what rung r knows of the target: an autoregressive link to it
(Kennedy and O'Hagan 2000, Section 2.2) that may be absent or negative; c says how much
the rungs share beyond that. Shift and slope are integrated out analytically (Rasmussen
and Williams 2006, Section 2.7). Distances have one length per domain. g = -1 stands for
an average over seeds. Not done here: choosing rows, units, or anything about the objective.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mixopt.mixture import Array

logger = logging.getLogger(__name__)

NO_TRIAL = -1.0
SHIFT_VARIANCE = 16.0  # bias of experts from 25 to 400 steps is up to 7 scales (PROXIES 5): two standard deviations
RUNG_SHIFT_VARIANCE = 4.0
SLOPE_VARIANCE = 0.1  # slope ~ N(1, 0.3^2)
FEWEST_TO_FIT = 4  # below, hyperparameters stay at their priors' modes
LINK_MODE, LINK_SPREAD = 1.25, 0.85  # atanh of the link: 0.85, but 7% of the prior below 0 (METHODS 2.4: wide)
_MAX_STEPS = 60
_TOLERANCE = 1e-5  # relative, of the log posterior
_REACH = 6.0  # prior spreads a hyperparameter may go from its mode
_JITTER = 1e-6


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a hyperparameter stands in the vector of a column, its prior, and the rungs.

    All are logarithms but `link` (atanh of p) and `common` (logit of c); priors normal.

    Attributes:
        num_domains: K.
        positions: (R,) rung positions in [0, 1], the target last.
        residual_mode: Prior mode of the residual's standard deviation, in scales.
    """

    num_domains: int
    positions: Tensor
    residual_mode: float = 1.0

    @property
    def num_rungs(self) -> int:
        """R."""
        return len(self.positions)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """{hyperparameter: its place}."""
        rungs, places, start = self.num_rungs, {}, 0
        sizes = {
            "length": self.num_domains, "amplitude": 1, "stretch": rungs, "linear": 1, "link": rungs - 1, "common": 1,
            "noise": rungs, "trial": 1,
        }  # fmt: skip
        for name, size in sizes.items():
            places[name] = slice(start, start + size)
            start += size
        return places

    def prior(self) -> tuple[Tensor, Tensor]:
        """Return modes and spreads of all hyperparameters."""
        table = {
            # In units of the typical distance of two mixtures; looked for on half of the published 1M training runs.
            "length": (math.log(1.6), 1.0),
            "amplitude": (math.log(self.residual_mode), 0.7),
            "stretch": (0.0, 0.3),
            "linear": (math.log(0.3), 1.0),
            "link": (LINK_MODE, LINK_SPREAD),
            "common": (0.0, 1.0),
            "noise": (math.log(0.1), 1.0),
            "trial": (math.log(0.1), 0.8),
        }
        places = self.slices
        total = max(place.stop for place in places.values())
        modes, spreads = torch.zeros(total, dtype=torch.float64), torch.ones(total, dtype=torch.float64)
        for name, (mode, spread) in table.items():
            modes[places[name]], spreads[places[name]] = mode, spread
        return modes, spreads


@dataclass(frozen=True, eq=False)
class Kernel:
    """The covariance of the module docstring for one vector of hyperparameters.

    Attributes:
        layout: Where they stand.
        theta: All hyperparameters.
    """

    layout: Layout
    theta: Tensor

    def value(self, name: str) -> Tensor:
        """Return a hyperparameter on its own scale, shape (its number,)."""
        raw = self.theta[self.layout.slices[name]]
        return raw.tanh() if name == "link" else raw.sigmoid() if name == "common" else raw.exp()

    def with_links(self, links: Tensor) -> Kernel:
        """Return the kernel with other links (R-1,) to the target, each in (-1, 1)."""
        theta = self.theta.clone()
        theta[self.layout.slices["link"]] = links.clamp(-0.999, 0.999).atanh()
        return Kernel(self.layout, theta)

    def prepare(self, rows: Tensor) -> Prepared:
        """Return (M, 3K+3) rows as this kernel uses them; worth keeping for rows used twice."""
        k, size = self.layout.num_domains, self.layout.num_rungs
        near = rows[..., : 2 * k] * self._inverse_lengths
        # Rungs as indicators: gathering by index is slow to differentiate.
        rung = torch.nn.functional.one_hot(rows[..., -2].detach().long(), size).to(rows.dtype)
        return Prepared(near, near.square().sum(-1), rows[..., 2 * k : 3 * k], rows[..., -3], rung, rows[..., -1])

    def noise(self, a: Prepared) -> Tensor:
        """Return (N,) noise variances of single observations."""
        return a.rung @ self.value("noise").square()

    def matrix(self, a: Prepared, b: Prepared) -> Tensor:
        """Return (N, M) covariances, without noise."""
        square = torch.addmm(a.norm[:, None] + b.norm, a.near, b.near.T, alpha=-2)
        same = (a.trial[:, None] == b.trial) & (a.trial[:, None] >= 0)
        losses = a.loss[:, None] * b.loss if a.loss.any() and b.loss.any() else None
        return self._combine(square, a.linear @ b.linear.T, losses, same, lambda c: a.rung @ c @ b.rung.T)

    def pairs(self, a: Prepared, b: Prepared) -> Tensor:
        """Return (N,) covariances of row n of one with row n of the other."""
        square, linear = (a.near - b.near).square().sum(-1), (a.linear * b.linear).sum(-1)
        same = (a.trial == b.trial) & (a.trial >= 0)
        return self._combine(square, linear, a.loss * b.loss, same, lambda c: ((a.rung @ c) * b.rung).sum(-1))

    def _combine(
        self,
        square: Tensor,
        linear: Tensor,
        losses: Tensor | None,
        same: Tensor,
        between: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Add the parts up; `between` spreads an (R, R) matrix over the pairs of rows."""
        square = square.clamp_min(1e-12)
        distance = square.sqrt()
        shape = (1 + distance + square / 3) * (-distance).exp() + self._linear * linear
        total = between(self._residual) * shape + between(self._shift)
        if losses is not None:
            total = total + losses * between(SLOPE_VARIANCE * self.links)
        if bool(same.any()):
            total = total + same * between(self._trial)
        return total

    @cached_property
    def links(self) -> Tensor:
        """(R, R) correlations C between rungs."""
        p = torch.cat([self.value("link"), torch.ones(1, dtype=torch.float64)])
        own = (1 - p.square()).clamp_min(0).sqrt()
        share = self.value("common") + (1 - self.value("common")) * torch.eye(len(p), dtype=torch.float64)
        return p[:, None] * p + share * own[:, None] * own

    @cached_property
    def _inverse_lengths(self) -> Tensor:
        return (math.sqrt(5) / self.value("length")).repeat(2)

    @cached_property
    def _linear(self) -> Tensor:
        return self.value("linear").square()

    @cached_property
    def _residual(self) -> Tensor:
        amplitude = self.value("amplitude") * self.value("stretch")
        return amplitude[:, None] * amplitude * self.links

    @cached_property
    def _shift(self) -> Tensor:
        return SHIFT_VARIANCE + RUNG_SHIFT_VARIANCE * self._nearness

    @cached_property
    def _trial(self) -> Tensor:
        return self.value("trial").square() * self._nearness

    @cached_property
    def _nearness(self) -> Tensor:
        z = self.layout.positions
        return (-(z[:, None] - z).abs()).exp()


@dataclass(frozen=True, eq=False)
class Prepared:
    """Rows as a kernel uses them.

    Attributes:
        near: (M, 2K) inputs, each over its length.
        norm: (M,) squared lengths of `near`.
        linear: (M, K) weights.
        loss: (M,) predictor's losses.
        rung: (M, R) indicators of the rung.
        trial: (M,) trial numbers.
    """

    near: Tensor
    norm: Tensor
    linear: Tensor
    loss: Tensor
    rung: Tensor
    trial: Tensor

    def select(self, chosen: Tensor) -> Prepared:
        """Return some of the rows."""
        return Prepared(*(getattr(self, f.name)[chosen] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Posterior:
    """A Gaussian process conditioned on rows; differentiable in the rows it is asked about.

    Attributes:
        kernel: Covariance, hyperparameters fixed.
        rows: (N, 3K+3) encoded inputs, N may be 0.
        values: (N,) values less the prior mean.
        known: (N,) known noise variances, added to the learned ones.
        own: The rows, prepared.
        factor: (N, N) lower Cholesky factor of the covariance of the values.
        dual: (N,) covariance inverse times values.
    """

    kernel: Kernel
    rows: Tensor
    values: Tensor
    known: Tensor
    own: Prepared = field(init=False)
    factor: Tensor = field(init=False)
    dual: Tensor = field(init=False)

    def __post_init__(self) -> None:
        own = self.kernel.prepare(self.rows)
        factor = torch.linalg.cholesky(_covariance(self.kernel, own, self.known))
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "dual", torch.cholesky_solve(self.values[:, None], factor)[:, 0])

    def mean(self, rows: Prepared) -> Tensor:
        """Return (M,) posterior means."""
        return self.kernel.matrix(rows, self.own) @ self.dual

    def half(self, rows: Prepared) -> Tensor:
        """Whiten the covariances with M rows: (N, M), products of which the posterior loses."""
        return self.whiten(self.kernel.matrix(self.own, rows))

    def whiten(self, covariance: Tensor) -> Tensor:
        """Whiten (N, M) covariances of the observations with other rows."""
        whitened: Tensor = torch.linalg.solve_triangular(self.factor, covariance, upper=False)
        return whitened

    def covariance(self, rows: Prepared) -> Tensor:
        """Return the (M, M) posterior covariance."""
        half = self.half(rows)
        return self.kernel.matrix(rows, rows) - half.T @ half

    def variance(self, rows: Prepared) -> Tensor:
        """Return (M,) posterior variances, without observation noise."""
        return (self.kernel.pairs(rows, rows) - self.half(rows).square().sum(0)).clamp_min(1e-12)

    def believe(self, rows: Tensor) -> Posterior:
        """Condition on (M, 3K+3) rows as if they had shown their posterior means.

        The means stay, the variances shrink (kriging believer, Ginsbourger et al. 2010,
        Section 4.2).
        """
        known = torch.cat([self.known, torch.zeros(len(rows), dtype=rows.dtype)])
        values = torch.cat([self.values, self.mean(self.kernel.prepare(rows)).detach()])
        return Posterior(self.kernel, torch.cat([self.rows, rows]), values, known)

    def with_links(self, links: Tensor) -> Posterior:
        """Return the posterior with other links (R-1,) to the target."""
        return Posterior(self.kernel.with_links(links), self.rows, self.values, self.known)

    def left_out(self) -> Tensor:
        """Return (N,) standardized residuals of each value given all others.

        Source: Rasmussen and Williams 2006, Section 5.4.2, Eq. 5.12.
        """
        precision = torch.cholesky_inverse(self.factor).diagonal()
        return self.dual / precision.sqrt()

    def log_evidence(self) -> float:
        """Return the log marginal likelihood of the values."""
        fit = 0.5 * float(self.values @ self.dual) + float(self.factor.diagonal().log().sum())
        return -fit - 0.5 * len(self.values) * math.log(2 * math.pi)


def fit(rows: Tensor, values: Tensor, known: Tensor, layout: Layout) -> Kernel:
    """Fit hyperparameters by maximum a posteriori.

    With fewer than four rows they stay at the priors' modes; what the rows say nothing
    about (the link of a rung without rows) does anyway. The start is the modes, so the
    answer is deterministic.

    Args:
        rows: (N, 3K+3) encoded inputs; N may be 0.
        values: (N,) values less the prior mean, in scales.
        known: (N,) known noise variances, in squared scales.
        layout: Hyperparameters and their priors.
    """
    modes, spreads = layout.prior()
    if len(rows) < FEWEST_TO_FIT:
        return Kernel(layout, modes)

    def loss(theta: Tensor) -> Tensor:
        kernel = Kernel(layout, theta)
        factor = torch.linalg.cholesky(_covariance(kernel, kernel.prepare(rows), known))
        white = torch.linalg.solve_triangular(factor, values[:, None], upper=False)
        away = ((theta - modes) / spreads).square().sum()
        return torch.as_tensor(0.5 * white.square().sum() + factor.diagonal().log().sum() + 0.5 * away)

    def with_slope(point: Array) -> tuple[float, Array]:
        theta = torch.tensor(point, requires_grad=True)
        try:
            with torch.enable_grad():
                value = loss(theta)
                (slope,) = torch.autograd.grad(value, theta)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return 1e12, np.zeros_like(point)
        return value.item(), slope.numpy()

    limits = list(zip((modes - _REACH * spreads).tolist(), (modes + _REACH * spreads).tolist(), strict=True))
    options = {"maxiter": _MAX_STEPS, "ftol": _TOLERANCE}
    found = minimize(with_slope, modes.numpy(), jac=True, method="L-BFGS-B", bounds=limits, options=options)
    if not np.isfinite(found.fun) or found.fun >= 1e12:
        logger.warning("surrogate not fitted, priors' modes kept rows=%d message=%s", len(rows), found.message)
        return Kernel(layout, modes)
    return Kernel(layout, torch.tensor(found.x))


def _covariance(kernel: Kernel, rows: Prepared, known: Tensor) -> Tensor:
    return kernel.matrix(rows, rows) + torch.diag(kernel.noise(rows) + known + _JITTER)
