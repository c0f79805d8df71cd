"""Bayesian optimization as published and as BoTorch offers it: `gp-ei` and `admire`.

One process on the objective over raw weights, refitted after every run, with BoTorch's
defaults (values standardized): at the target alone with expected improvement, or over all
rungs with the rung's price as fidelity and max-value entropy per price. A batch holds the
best `num` by acquisition: neither method was published for batches. Our own model is in
`bayes.py`. N runs, M candidates, K domains; BoTorch maximizes, so signs flip here.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.acquisition.cost_aware import InverseCostWeightedUtility
from botorch.acquisition.max_value_entropy_search import qMultiFidelityMaxValueEntropy
from botorch.acquisition.utils import project_to_target_fidelity
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP, SingleTaskMultiFidelityGP
from botorch.models.cost import AffineFidelityCostModel
from botorch.utils.sampling import manual_seed
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from mixopt import seeding
from mixopt.identity import fingerprint
from mixopt.mixture import Array, Mixture
from mixopt.observation import History, Role
from mixopt.proposal import Prediction, Proposal, Recommendation

from .baselines import SLACK, Baseline, Rows, complete_runs

logger = logging.getLogger(__name__)

NUM_MAX_VALUES = 10  # BoTorch's default; ADMIRE took 1, which made its choices noisy (METHODS 2.1)
_ROWS_AT_ONCE = 128  # bounds the memory of the entropy
_REMEMBERED = 4


@dataclass(frozen=True, eq=False)
class _Fit:
    """A process and the runs it rests on.

    Attributes:
        process: BoTorch model of minus the objective.
        inputs: (N, D) encoded runs.
        values: (N, 1) minus their objectives.
        trials: Ids of the runs.
        fitted: False if the fit failed and hyperparameters stand where they start.
    """

    process: Any
    inputs: Tensor
    values: Tensor
    trials: tuple[str, ...]
    fitted: bool


@dataclass(frozen=True, eq=False)
class _Process(Baseline):
    """Random runs at one rung, then the best acquisition value; subclasses say which.

    Attributes:
        num_start: Random runs to begin with.
    """

    num_start: int = 1
    _memory: OrderedDict[str, _Fit] = field(default_factory=OrderedDict, init=False, repr=False)

    @property
    def rungs(self) -> tuple[str, ...]:
        """Rungs that are bought and learned from; the random runs are at the first."""
        raise NotImplementedError

    def encode(self, weights: Array, fidelities: Sequence[str]) -> Tensor:
        """Return (M, D) inputs of (M, K) weights at M rungs."""
        raise NotImplementedError

    def build(self, inputs: Tensor, values: Tensor) -> Any:
        """Return an unfitted process."""
        raise NotImplementedError

    def score(self, fit: _Fit, rows: Rows) -> Array:
        """Return (M,) acquisition values of candidates."""
        raise NotImplementedError

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return random runs at first, later those with the largest acquisition value."""
        left = self.left(history)
        rows = np.concatenate([self.at(left, name) for name in self.rungs])
        rows = rows[self.candidates.prices[rows] <= budget + SLACK]
        fit = self._fit(history)
        known = (len(fit.trials) if fit else 0) + len(history.of(Role.SEARCH).pending)
        if fit is None or known < self.num_start:
            reason = f"random start at {self.rungs[0]}"
            return self.buy(rows, min(num, max(1, self.num_start - known)), budget=budget, reason=reason)
        if not len(rows):
            return []
        rows = rows[np.argsort(-self.score(fit, rows), kind="stable")]
        reason = f"largest acquisition value among {len(rows)} runs, from {len(fit.trials)} measured"
        proposals = self.buy(rows, num, budget=budget, reason=reason)
        return proposals if fit.fitted else [replace(p, proposed_by=f"{self.name}:unfitted") for p in proposals]

    def recommend(self, history: History) -> Recommendation:
        """Return the target candidate with the best posterior mean of the objective."""
        fit = self._fit(history)
        if fit is None:
            return self.guess(history)
        targets, fidelity = self.candidates.targets(self.ladder), self.ladder.target.name
        mean, std = _posterior(fit, self.encode(targets, [fidelity] * len(targets)))
        best = int(mean.argmin())
        return Recommendation(
            Mixture(self.constraints.domains, targets[best]),
            fidelity,
            {"objective": float(mean[best])},
            {"objective": float(std[best])},
            None,
            fit.trials,
            self.name,
            f"smallest posterior mean at the target among {len(targets)} mixtures, from {len(fit.trials)} runs",
        )

    def predict(self, history: History, mixtures: Sequence[Mixture], *, fidelity: str) -> Prediction:
        """Return the posterior of the objective alone; before the first run, mean 0 and standard deviation 1."""
        weights = np.array([m.over(self.constraints.domains).weights for m in mixtures])
        fit = self._fit(history)
        mean, std = np.zeros(len(weights)), np.ones(len(weights))
        if fit is not None:
            mean, std = _posterior(fit, self.encode(weights, [fidelity] * len(weights)))
        return Prediction(fidelity, {"objective": mean}, {"objective": std})

    def inputs(self, rows: Rows) -> Tensor:
        """Return (M, D) inputs of candidates."""
        return self.encode(self.candidates.weights[rows], [self.candidates.fidelities[row] for row in rows])

    def _fit(self, history: History) -> _Fit | None:
        """Return the process of all complete runs, remembered by their content; None without one."""
        runs = [complete_runs(history, name, self.objective) for name in self.rungs]
        trials = [trial for part in runs for trial in part.trials]
        seen = [obs for part in runs for obs in part.observations]
        if not trials:
            return None
        weights = np.array([trial.mixture.over(self.constraints.domains).weights for trial in trials])
        inputs = self.encode(weights, [obs.fidelity for obs in seen])
        values = -torch.tensor([[float(self.objective.value(obs.columns()))] for obs in seen], dtype=torch.float64)
        key = fingerprint([inputs.tolist(), values.tolist()])
        if key not in self._memory:
            process, fitted = self._learn(inputs, values)
            self._memory[key] = _Fit(process, inputs, values, (), fitted)
            while len(self._memory) > _REMEMBERED:
                self._memory.popitem(last=False)
        return replace(self._memory[key], trials=tuple(trial.id for trial in trials))

    def _learn(self, inputs: Tensor, values: Tensor) -> tuple[Any, bool]:
        """Maximize the marginal likelihood; a failure is logged and leaves the starting values."""
        with warnings.catch_warnings(), manual_seed(seeding.derive(self.seed, "fit") % 2**31):
            warnings.simplefilter("ignore")  # on scaling and repeated attempts: neither changes what is done
            process = self.build(inputs, values)
            try:
                fit_gpytorch_mll(ExactMarginalLogLikelihood(process.likelihood, process))
            except ModelFittingError as error:
                logger.warning("fit failed optimizer=%s runs=%d: %s", self.name, len(inputs), error)
                return self.build(inputs, values).eval(), False
        return process.eval(), True


@dataclass(frozen=True, eq=False)
class ExpectedImprovementOptimizer(_Process):
    """Single fidelity: three random target runs, then log expected improvement.

    Source: Ament et al. 2023 (arXiv:2310.20708) as `LogExpectedImprovement` in BoTorch;
    the single-fidelity contender of ADMIRE (METHODS 2.1), which began with one run.
    """

    num_start: int = 3

    @property
    def name(self) -> str:
        """`gp-ei`."""
        return "gp-ei"

    @property
    def rungs(self) -> tuple[str, ...]:
        """The target."""
        return (self.ladder.target.name,)

    def encode(self, weights: Array, fidelities: Sequence[str]) -> Tensor:
        """Return the weights."""
        return torch.tensor(weights, dtype=torch.float64)

    def build(self, inputs: Tensor, values: Tensor) -> Any:
        """Return BoTorch's default process."""
        return SingleTaskGP(inputs, values)

    def score(self, fit: _Fit, rows: Rows) -> Array:
        """Return logarithms of the expected improvement in objective units, prices left out."""
        with torch.no_grad():
            improvement = LogExpectedImprovement(fit.process, best_f=fit.values.max())
            return np.asarray(improvement(self.inputs(rows)[:, None]).numpy())


@dataclass(frozen=True, eq=False)
class EntropySearchOptimizer(_Process):
    """Multi-fidelity max-value entropy per price, as in ADMIRE-BayesOpt.

    One random run at the cheapest rung, then the argmax over all runs left. The fidelity
    of a rung is its cost in target runs, at most 1. Maxima are sampled over the measured
    mixtures at the target, as published. We differ where the published code has quirks:
    values are standardized, ten maxima instead of one, everything seeded, the price is
    the run's own, and the recommendation has the best posterior mean instead of the
    largest acquisition value.

    Source: ADMIRE-BayesOpt (arXiv:2508.11551), read in METHODS 2.1; kernel and entropy as
    in BoTorch (Takeno et al. 2020, arXiv:1901.08275).
    """

    @property
    def name(self) -> str:
        """`admire`."""
        return "admire"

    @property
    def rungs(self) -> tuple[str, ...]:
        """All rungs that have candidates, cheapest first."""
        return tuple(rung.name for rung in self.ladder if rung.name in self.candidates.fidelities)

    def encode(self, weights: Array, fidelities: Sequence[str]) -> Tensor:
        """Return the weights and the rung's cost."""
        costs = np.array([min(self.ladder[name].cost, 1.0) for name in fidelities])
        return torch.tensor(np.column_stack([weights, costs]), dtype=torch.float64)

    def build(self, inputs: Tensor, values: Tensor) -> Any:
        """Return BoTorch's multi-fidelity process; the last input is the fidelity."""
        return SingleTaskMultiFidelityGP(inputs, values, data_fidelities=[inputs.shape[-1] - 1])

    def score(self, fit: _Fit, rows: Rows) -> Array:
        """Return nats of information about the maximum per target run."""
        inputs = self.inputs(rows)
        last = inputs.shape[-1] - 1
        free = InverseCostWeightedUtility(AffineFidelityCostModel({last: 0.0}, fixed_cost=1.0))
        with torch.no_grad(), warnings.catch_warnings(), manual_seed(seeding.derive(self.seed, "maxima") % 2**31):
            warnings.simplefilter("ignore")
            entropy = qMultiFidelityMaxValueEntropy(
                fit.process,
                candidate_set=fit.inputs[:1],  # BoTorch adds the measured ones
                num_mv_samples=NUM_MAX_VALUES,
                cost_aware_utility=free,
                project=lambda x: project_to_target_fidelity(x, {last: 1.0}, d=last + 1),
            )
            values = torch.cat([entropy(part[:, None]) for part in inputs.split(_ROWS_AT_ONCE)])
        return np.asarray(values.numpy() / self.candidates.prices[rows])


def _posterior(fit: _Fit, inputs: Tensor) -> tuple[Array, Array]:
    """Return (M,) means and standard deviations of the objective."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = fit.process.posterior(inputs)
        return -posterior.mean[:, 0].numpy(), posterior.variance[:, 0].clamp_min(1e-12).sqrt().numpy()
