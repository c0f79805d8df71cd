"""The link from losses to a task's accuracy, learned from runs, with its uncertainty.

Lower losses mean at least as good accuracies, in the same direction for every run, but
how much is the task's own affair and may be nothing. With z the J losses, standardized
over the runs,

    accuracy = chance + (1 - chance) sigmoid(level - slope (share . z)) + residual
    slope >= 0,  share on the simplex,  residual ~ N(0, scale^2)

beside the binomial noise of a task of so many questions. A link (slope > 0) and none
(slope 0) are equally probable before there are runs; parameters are averaged over their
posterior by importance sampling about its mode, so that few runs leave a wide answer and
`verdict` says `unknown`. Not done here: predicting the losses.

    N runs, J loss columns, M mixtures, S samples, P parameters

Source: METHODS 9 (the idea). Importance sampling with a defensive mixture: Hesterberg
1995, Technometrics 37(2), Section 3. Priors and form are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from mixopt import seeding
from mixopt.errors import ConfigError
from mixopt.mixture import Array

LEVEL_SPREAD = 2.0  # logits: accuracies from 2% to 98% of the way from chance to 1
SLOPE_SPREAD = 1.0  # logits per standard deviation of the losses
RESIDUAL_MODE, RESIDUAL_SPREAD = math.log(0.02), 1.0  # seeds of a task move its accuracy by 0.005 to 0.1
LEAST_RESIDUAL = 1e-3  # accuracies that agree by chance prove no exact link
SURE = 0.95
TYPICAL_SPREAD = 0.2  # of losses where fewer than two runs show one, nats per token (PROXIES 5)
_NUM_SAMPLES, _NUM_KEPT = 4096, 512
_FREEDOM, _FROM_PRIOR = 4.0, 0.1
_STEP = 1e-4


@dataclass(frozen=True, eq=False)
class AccuracyLink:
    """What is believed of a task's accuracy given its losses: S equally probable links.

    Attributes:
        chance: Accuracy of guessing.
        centers: (J,) mean losses of the runs.
        scales: (J,) their standard deviations.
        levels: (S,) logits at the mean losses.
        slopes: (S, J) logits per standard deviation, >= 0; 0 for samples without a link.
        residuals: (S,) standard deviations of what losses leave open, accuracy units.
        probability: That there is a link.
    """

    chance: float
    centers: Array
    scales: Array
    levels: Array
    slopes: Array
    residuals: Array
    probability: float

    @property
    def verdict(self) -> str:
        """`linked`, `not linked`, or `unknown` where the runs leave that open."""
        if self.probability >= SURE:
            return "linked"
        return "not linked" if self.probability <= 1 - SURE else "unknown"

    def predict(self, losses: Array) -> tuple[Array, Array]:
        """Predict accuracies over endless questions.

        Args:
            losses: (M, J) losses, nats per token.

        Returns:
            (M,) means, nowhere rising with a loss, and (M,) standard deviations, the
            residual included. Binomial noise is included only if the number of
            questions was not given: then the residual holds it.
        """
        z_MJ = (np.atleast_2d(np.asarray(losses, dtype=np.float64)) - self.centers) / self.scales
        above_SM = expit(self.levels[:, None] - self.slopes @ z_MJ.T)
        values_SM = self.chance + (1 - self.chance) * above_SM
        std_M = np.sqrt(values_SM.var(axis=0) + np.square(self.residuals).mean())
        return values_SM.mean(axis=0), std_M


def fit_link(
    losses: Array, accuracies: Array, *, chance: float = 0.0, num_questions: int | None = None
) -> AccuracyLink:
    """Learn a task's link from runs.

    Args:
        losses: (N, J) losses of runs at one rung, nats per token; N may be 0. A few
            columns: their shares have to be learned too.
        accuracies: (N,) accuracies of the same runs.
        chance: Accuracy of guessing, in [0, 1).
        num_questions: Of the task, for its binomial noise, or None.

    Returns:
        The link; the same for the same runs.

    Raises:
        ConfigError: If shapes, chance or the number of questions cannot be used.
    """
    x_NJ, y_N = np.asarray(losses, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    _check(x_NJ, y_N, chance, num_questions)
    centers, scales = _units(x_NJ)
    runs = _Runs((x_NJ - centers) / scales, y_N, chance, num_questions)
    found = [_Model(runs, linked).sample() for linked in (True, False)]
    log_odds = found[0].log_evidence - found[1].log_evidence
    probability = float(expit(log_odds))
    kept = round(_NUM_KEPT * probability)
    levels, slopes, residuals = (
        np.concatenate(parts) for parts in zip(found[0].draw(kept), found[1].draw(_NUM_KEPT - kept), strict=True)
    )
    return AccuracyLink(chance, centers, scales, levels, slopes, residuals, probability)


def _check(losses: Array, accuracies: Array, chance: float, num_questions: int | None) -> None:
    if losses.ndim != 2 or not losses.shape[1] or accuracies.shape != losses.shape[:1]:
        raise ConfigError(
            f"link: expected (N, J) losses and (N,) accuracies, got shapes {losses.shape} and {accuracies.shape}; "
            "give a row per run and at least one loss"
        )
    if not (np.isfinite(losses).all() and np.isfinite(accuracies).all()):
        raise ConfigError("link: expected finite losses and accuracies, got nan or infinity; leave such runs out")
    if not 0 <= chance < 1:
        raise ConfigError(f"link.chance: expected an accuracy from 0 to below 1, got {chance:g}")
    if num_questions is not None and num_questions < 1:
        raise ConfigError(f"link.num_questions: expected at least 1 or none, got {num_questions}")


def _units(losses: Array) -> tuple[Array, Array]:
    """Return (J,) centers and scales; a column that does not vary gets a typical scale."""
    num, columns = losses.shape
    if num < 2:
        return losses.mean(axis=0) if num else np.zeros(columns), np.full(columns, TYPICAL_SPREAD)
    spread = losses.std(axis=0, ddof=1)
    return losses.mean(axis=0), np.where(spread > 1e-9, spread, TYPICAL_SPREAD)


@dataclass(frozen=True, eq=False)
class _Runs:
    """Standardized (N, J) losses, (N,) accuracies and the task."""

    z_NJ: Array
    y_N: Array
    chance: float
    num_questions: int | None


@dataclass(frozen=True, eq=False)
class _Weighted:
    """Samples of a model's posterior, with weights, and its evidence."""

    levels: Array
    slopes: Array
    residuals: Array
    weights: Array
    log_evidence: float

    def draw(self, num: int) -> tuple[Array, Array, Array]:
        """Return `num` equally probable samples, by systematic resampling."""
        at = (np.arange(num) + 0.5) / max(1, num)
        rows = np.minimum(np.searchsorted(np.cumsum(self.weights), at), len(self.weights) - 1)
        return self.levels[rows], self.slopes[rows], self.residuals[rows]


@dataclass(frozen=True, eq=False)
class _Model:
    """A posterior over [level, log residual] and, if there is a link, [log slope, share logits].

    Attributes:
        runs: What was measured.
        linked: Whether losses say anything.
    """

    runs: _Runs
    linked: bool

    @property
    def num_parameters(self) -> int:
        """P."""
        return 2 + (1 + self.runs.z_NJ.shape[1] if self.linked else 0)

    def parts(self, theta_SP: Array) -> tuple[Array, Array, Array]:
        """Return levels (S,), slopes (S, J) and residuals (S,)."""
        slopes = np.zeros((len(theta_SP), self.runs.z_NJ.shape[1]))
        if self.linked:
            slopes = np.exp(theta_SP[:, 2:3]) * softmax(theta_SP[:, 3:], axis=1)
        return theta_SP[:, 0], slopes, np.hypot(np.exp(theta_SP[:, 1]), LEAST_RESIDUAL)

    def log_joint(self, theta_SP: Array) -> Array:
        """Return (S,) log densities of the accuracies and the parameters."""
        runs, (levels, slopes, residuals) = self.runs, self.parts(theta_SP)
        mean_SN = runs.chance + (1 - runs.chance) * expit(levels[:, None] - slopes @ runs.z_NJ.T)
        variance_SN = np.square(residuals)[:, None] + np.zeros_like(mean_SN)
        if runs.num_questions is not None:
            variance_SN += mean_SN * (1 - mean_SN) / runs.num_questions
        misfit_SN = np.square(runs.y_N - mean_SN) / variance_SN + np.log(2 * np.pi * variance_SN)
        return np.asarray(self.log_prior(theta_SP) - 0.5 * misfit_SN.sum(axis=1))

    def log_prior(self, theta_SP: Array) -> Array:
        """Return (S,) log prior densities."""
        total = _normal(theta_SP[:, 0], 0.0, LEVEL_SPREAD) + _normal(theta_SP[:, 1], RESIDUAL_MODE, RESIDUAL_SPREAD)
        if self.linked:  # a half normal slope, whose logarithm is what varies
            log_slope = np.minimum(theta_SP[:, 2], 50.0)
            total += _normal(np.exp(log_slope), 0.0, SLOPE_SPREAD) + math.log(2) + log_slope
            total += _normal(theta_SP[:, 3:], 0.0, 1.0).sum(axis=1)
        return np.asarray(total)

    def from_prior(self, num: int, rng: np.random.Generator) -> Array:
        """Return (num, P) draws from the prior."""
        theta = rng.standard_normal((num, self.num_parameters))
        theta[:, 0] *= LEVEL_SPREAD
        theta[:, 1] = RESIDUAL_MODE + RESIDUAL_SPREAD * theta[:, 1]
        if self.linked:
            theta[:, 2] = np.log(SLOPE_SPREAD * np.abs(theta[:, 2]) + 1e-300)
        return theta

    def sample(self) -> _Weighted:
        """Sample from a t distribution about the mode and, for the tails, from the prior."""
        rng = seeding.generator(0, "accuracy link", self.linked)
        mode, root = self._about_mode()
        num_prior = int(_FROM_PRIOR * _NUM_SAMPLES)
        normals = rng.standard_normal((_NUM_SAMPLES - num_prior, self.num_parameters))
        stretch = np.sqrt(_FREEDOM / rng.chisquare(_FREEDOM, len(normals)))
        theta = np.concatenate([mode + (normals * stretch[:, None]) @ root.T, self.from_prior(num_prior, rng)])
        proposal = np.logaddexp(
            math.log(1 - _FROM_PRIOR) + _student(theta, mode, root), math.log(_FROM_PRIOR) + self.log_prior(theta)
        )
        log_weights = self.log_joint(theta) - proposal
        total = float(logsumexp(log_weights))
        return _Weighted(*self.parts(theta), np.exp(log_weights - total), total - math.log(_NUM_SAMPLES))

    def _about_mode(self) -> tuple[Array, Array]:
        """Return the (P,) mode and a (P, P) root of the inverse curvature there."""
        start = np.zeros(self.num_parameters)
        start[1] = RESIDUAL_MODE
        if len(self.runs.y_N):
            above = (self.runs.y_N.mean() - self.runs.chance) / (1 - self.runs.chance)
            start[0] = math.log(max(above, 0.01) / max(1 - above, 0.01))
        if self.linked:
            start[2] = math.log(0.3)
        steps = _STEP * np.eye(len(start))

        def slope(theta: Array) -> Array:
            return -(self.log_joint(theta + steps) - self.log_joint(theta - steps)) / (2 * _STEP)

        mode = minimize(lambda theta: -float(self.log_joint(theta[None])[0]), start, jac=slope, method="BFGS").x
        return mode, _root(slope, mode)


def _root(slope: Callable[[Array], Array], mode: Array) -> Array:
    """Return a root of the inverse of the curvature, no wider than twice the priors in any direction."""
    step = 1e-3
    curvature = np.stack([(slope(mode + e) - slope(mode - e)) / (2 * step) for e in step * np.eye(len(mode))])
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1 / (2 * LEVEL_SPREAD) ** 2)))


def _normal(x: Array, mean: float, spread: float) -> Array:
    return np.asarray(-0.5 * np.square((x - mean) / spread) - math.log(spread * math.sqrt(2 * math.pi)))


def _student(theta_SP: Array, mode: Array, root: Array) -> Array:
    """Return (S,) log densities of the multivariate t distribution."""
    size = len(mode)
    square = np.square(np.linalg.solve(root, (theta_SP - mode).T)).sum(axis=0)
    norm = math.lgamma((_FREEDOM + size) / 2) - math.lgamma(_FREEDOM / 2) - size / 2 * math.log(_FREEDOM * math.pi)
    volume = float(np.linalg.slogdet(root)[1])
    return np.asarray(norm - volume - (_FREEDOM + size) / 2 * np.log1p(square / _FREEDOM))
