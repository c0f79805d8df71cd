"""One Gaussian process for one column over (mixture, rung, trial): kernel, MAP fit, algebra.

Rows are encoded inputs, one per observation:

    [x_1 .. x_K | m | z | g]   x scaled log weights, m the predictor's centered and scaled
                               loss, z the rung's position in [0, 1], g the trial's number

Values are in units of the column's scale, the predictor subtracted. The covariance is

    wide + rung(z, z')                           shift, common and per rung
    + 0.1 m m' rung(z, z')                       slope deviation
    + s_g^2 Matern-5/2(x, x') rung(z, z')        residual
    + s_t^2 [g = g' >= 0] exp(-|z - z'| / 1)     trial effect

so that shift and slope are integrated out analytically (Rasmussen and Williams 2006,
Section 2.7, explicit basis functions). g = -1 stands for an average over seeds.
Not done here: choosing rows, units, or anything about the objective.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import gpytorch
import torch
from botorch.exceptions.errors import BotorchError
from botorch.models.gpytorch import GPyTorchModel
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.constraints import Positive
from gpytorch.distributions import MultivariateNormal
from gpytorch.priors import LogNormalPrior
from linear_operator.operators import DenseLinearOperator
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

logger = logging.getLogger(__name__)

NO_TRIAL = -1.0
SHIFT_VARIANCE = 16.0  # bias of experts from 25 to 400 steps is up to 7 scales (PROXIES 5): two standard deviations
RUNG_SHIFT_VARIANCE = 4.0
RUNG_SHIFT_LENGTH = 1.0
SLOPE_VARIANCE = 0.1  # slope ~ N(1, 0.3^2)
TRIAL_LENGTH = 1.0
FEWEST_TO_FIT = 4  # below, hyperparameters stay at their priors' modes
_MAX_STEPS = 60
_TOLERANCE = 1e-6  # relative, of the log posterior per row
_NOISE_FLOOR = 1e-6
_JITTER = 1e-8


def _prior(mode: float, spread: float) -> LogNormalPrior:
    return LogNormalPrior(math.log(mode) + spread**2, spread)


def _exp() -> Positive:
    return Positive(transform=torch.exp, inv_transform=torch.log)


class MixtureKernel(gpytorch.kernels.Kernel):  # type: ignore[misc]
    """The covariance of the module docstring.

    Args:
        num_domains: K.
        residual_mode: Prior mode of the residual's standard deviation s_g, in scales.
    """

    def __init__(self, num_domains: int, residual_mode: float) -> None:
        super().__init__()
        # Lengthscale: location of Hvarfner et al. 2024 (arXiv:2402.02229), sqrt(2) + log(K) / 2,
        # but spread 0.7 for their sqrt(3): fits here rest on few rows.
        modes = {
            "residual": (residual_mode, 0.7),
            "lengthscale": (math.sqrt(num_domains), 0.7),
            "rung_length": (2.0, 0.7),
            "trial": (0.1, 0.8),
        }
        for name, (mode, spread) in modes.items():
            self.register_parameter(f"raw_{name}", torch.nn.Parameter(torch.tensor(math.log(mode))))
            self.register_constraint(f"raw_{name}", _exp())
            self.register_prior(
                f"{name}_prior", _prior(mode, spread), lambda module, key=name: module.parameter_value(key), None
            )

    def parameter_value(self, name: str) -> Tensor:
        """Return a hyperparameter: `residual`, `lengthscale`, `rung_length` or `trial`."""
        raw: Tensor = getattr(self, f"raw_{name}")
        return raw.exp()

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: object) -> Tensor:
        """Return (N, M) covariances of (N, K+3) and (M, K+3) rows; (N,) if `diag`."""
        (w1, m1, z1, g1), (w2, m2, z2, g2) = _split(x1), _split(x2)
        if not diag:
            m1, z1, g1 = m1[:, None], z1[:, None], g1[:, None]
        distance = _distance(w1, w2, diag) * (math.sqrt(5) / self.parameter_value("lengthscale"))
        matern = (1 + distance + distance.square() / 3) * (-distance).exp()
        gap = (z1 - z2).abs()
        rung = (-gap / self.parameter_value("rung_length")).exp()
        shift = SHIFT_VARIANCE + RUNG_SHIFT_VARIANCE * (-gap / RUNG_SHIFT_LENGTH).exp()
        shape = SLOPE_VARIANCE * m1 * m2 + self.parameter_value("residual").square() * matern
        same = ((g1 == g2) & (g1 >= 0)).to(x1.dtype)
        return shift + shape * rung + self.parameter_value("trial").square() * same * (-gap / TRIAL_LENGTH).exp()


def _split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows[..., :-3], rows[..., -3], rows[..., -2], rows[..., -1]


def _distance(a: Tensor, b: Tensor, diag: bool) -> Tensor:
    if diag:
        return ((a - b).square().sum(-1) + 1e-20).sqrt()
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class _Model(gpytorch.models.ExactGP, GPyTorchModel):  # type: ignore[misc]
    """Zero mean, mixture kernel, known noise beside the learned one; only fitted, never asked."""

    _num_outputs = 1

    def __init__(self, rows: Tensor, values: Tensor, known: Tensor, kernel: MixtureKernel) -> None:
        noise_prior = _prior(0.05**2, 1.6)  # standard deviation 0.05 scales, times or over 2.2
        likelihood = gpytorch.likelihoods.GaussianLikelihood(
            noise_prior=noise_prior,
            noise_constraint=gpytorch.constraints.GreaterThan(
                _NOISE_FLOOR, transform=torch.exp, inv_transform=torch.log, initial_value=0.05**2
            ),
        )
        super().__init__(rows, values, likelihood)
        self.kernel, self.known = kernel, known

    def forward(self, rows: Tensor) -> MultivariateNormal:
        covariance = self.kernel.forward(rows, rows) + torch.diag(self.known + _JITTER)
        return MultivariateNormal(torch.zeros_like(rows[:, 0]), DenseLinearOperator(covariance))


@dataclass(frozen=True, eq=False)
class Posterior:
    """A Gaussian process conditioned on rows; differentiable in the rows it is asked about.

    Attributes:
        kernel: Covariance, hyperparameters fixed.
        noise: Learned variance of one observation beyond its trial effect.
        rows: (N, K+3) encoded inputs, N may be 0.
        values: (N,) values less the prior mean.
        known: (N,) known noise variances.
        factor: (N, N) lower Cholesky factor of the covariance of the values.
        dual: (N,) covariance inverse times values.
    """

    kernel: MixtureKernel
    noise: float
    rows: Tensor
    values: Tensor
    known: Tensor
    factor: Tensor = field(init=False)
    dual: Tensor = field(init=False)

    def __post_init__(self) -> None:
        covariance = self.kernel.forward(self.rows, self.rows) + torch.diag(self.known + self.noise + _JITTER)
        factor = torch.linalg.cholesky(covariance)
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "dual", torch.cholesky_solve(self.values[:, None], factor)[:, 0])

    def mean(self, rows: Tensor) -> Tensor:
        """Return (M,) posterior means of (M, K+3) rows."""
        return self.kernel.forward(rows, self.rows) @ self.dual

    def half(self, rows: Tensor) -> Tensor:
        """Whiten the covariances with (M, K+3) rows: (N, M), products of which the posterior loses."""
        whitened: Tensor = torch.linalg.solve_triangular(self.factor, self.kernel.forward(self.rows, rows), upper=False)
        return whitened

    def covariance(self, rows: Tensor) -> Tensor:
        """Return the (M, M) posterior covariance."""
        half = self.half(rows)
        return self.kernel.forward(rows, rows) - half.T @ half

    def variance(self, rows: Tensor) -> Tensor:
        """Return (M,) posterior variances, without observation noise."""
        return (self.kernel.forward(rows, rows, diag=True) - self.half(rows).square().sum(0)).clamp_min(1e-12)

    def believe(self, rows: Tensor) -> Posterior:
        """Condition on rows as if they had shown their posterior means.

        The means stay, the variances shrink (kriging believer, Ginsbourger et al. 2010,
        Section 4.2).
        """
        return Posterior(
            self.kernel,
            self.noise,
            torch.cat([self.rows, rows]),
            torch.cat([self.values, self.mean(rows).detach()]),
            torch.cat([self.known, torch.zeros(len(rows), dtype=rows.dtype)]),
        )


def fit(rows: Tensor, values: Tensor, known: Tensor, *, residual_mode: float) -> Posterior:
    """Fit hyperparameters by maximum a posteriori and condition on the rows.

    Only what the rows can inform is fitted: nothing below four rows, the rung
    correlation from two rungs on, the trial effect from two rungs of one trial on.
    The start is the priors' modes, so the answer is deterministic.

    Args:
        rows: (N, K+3) encoded inputs; N may be 0.
        values: (N,) values less the prior mean, in scales.
        known: (N,) known noise variances, in squared scales.
        residual_mode: Prior mode of the residual's standard deviation, in scales.
    """
    kernel = MixtureKernel(rows.shape[-1] - 3, residual_mode).double()
    model = _Model(rows, values, known, kernel).double()
    if len(rows) >= FEWEST_TO_FIT:
        _freeze_uninformed(kernel, rows)
        _maximize(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Posterior(kernel, float(model.likelihood.noise), rows, values, known)


def _freeze_uninformed(kernel: MixtureKernel, rows: Tensor) -> None:
    _, _, positions, groups = _split(rows)
    kernel.raw_rung_length.requires_grad_(len(set(positions.tolist())) > 1)
    kernel.raw_trial.requires_grad_(len(set(groups.tolist())) < len(groups))


def _maximize(model: _Model) -> None:
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model).train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with torch.enable_grad():
            fit_gpytorch_mll_scipy(mll, options={"maxiter": _MAX_STEPS, "ftol": _TOLERANCE})
    except (BotorchError, NanError, NotPSDError, RuntimeError) as error:
        logger.warning("surrogate not fitted, priors' modes kept rows=%d error=%s", len(model.known), error)
        model.load_state_dict(start)
