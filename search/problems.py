"""A synthetic problem on the simplex with a known optimum: an evaluator and its predictor.

The seed-averaged loss of column j at the target is c_j + exp(a_j . w), an exponential
mixing law (Ye et al., Data Mixing Laws, arXiv:2403.16952, Section 3) and convex in w, so
that its optimum is known. Lower rungs add a bias that depends on the mixture and shrinks
with the rung's position; a trial's seed shifts all its rungs. No training happens.
K domains, J evaluation sets, M mixtures; losses in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.convex import KLPenalty, Reduction, minimize
from mixopt.fidelity import Ladder
from mixopt.identity import fingerprint
from mixopt.mixture import Array, Mixture
from mixopt.objective import Objective
from mixopt.observation import History, Observation, Role, Status, Trial
from mixopt.proposal import Proposal
from mixopt.protocols import Job, Optimizer, TrialResult

_RUNG_NOISE = 0.3  # noise of each rung, relative to the noise that a trial's rungs share


@dataclass(frozen=True)
class SyntheticProblem:
    """Losses c_j + exp(a_j . w) with rung bias and seed noise; plain data.

    Attributes:
        domains: K names.
        eval_sets: J names.
        floors: c, J numbers.
        slopes: a, J rows of K numbers.
        bias: Level of the lowest rung's bias.
        bias_slopes: J rows of K numbers: how that bias depends on the mixture.
        noise: Standard deviation over seeds, shared by the rungs of a trial.
    """

    domains: tuple[str, ...]
    eval_sets: tuple[str, ...]
    floors: tuple[float, ...]
    slopes: tuple[tuple[float, ...], ...]
    bias: float
    bias_slopes: tuple[tuple[float, ...], ...]
    noise: float

    @classmethod
    def random(
        cls, num_domains: int, num_sets: int, seed: int, *, noise: float = 0.01, bias: float = 0.5
    ) -> SyntheticProblem:
        """Draw a problem in which evaluation set j likes domain j (modulo K) and perhaps others."""
        rng = seeding.generator(seed, "problem")
        likes = rng.random((num_sets, num_domains)) < 0.15
        likes[np.arange(num_sets), np.arange(num_sets) % num_domains] = True
        slopes = rng.uniform(-0.3, 0.3, (num_sets, num_domains)) - 1.5 * likes
        tilt = rng.normal(0.0, 0.1, (num_sets, num_domains))
        return cls(
            tuple(f"d{i}" for i in range(num_domains)),
            tuple(f"e{j}" for j in range(num_sets)),
            tuple(rng.uniform(2.0, 3.0, num_sets).tolist()),
            tuple(map(tuple, slopes.tolist())),
            bias,
            tuple(map(tuple, tilt.tolist())),
            noise,
        )

    def losses(self, weights: Array, position: float = 1.0) -> Array:
        """Return (M, J) seed-averaged losses of (M, K) weights at a rung position."""
        low = (1 - position) * (self.bias + weights @ np.array(self.bias_slopes).T)
        return np.asarray(np.array(self.floors) + np.exp(weights @ np.array(self.slopes).T) + low, dtype=np.float64)

    def measured(self, trial: Trial, name: str, position: float) -> Array:
        """Return the (J,) losses that one trial shows at the rung called `name`."""
        shared = seeding.generator(trial.seed, "trial").standard_normal(len(self.eval_sets))
        own = seeding.generator(trial.seed, "rung", name).standard_normal(len(self.eval_sets))
        weights = trial.mixture.over(self.domains).weights[None]
        return np.asarray(self.losses(weights, position)[0] + self.noise * (shared + _RUNG_NOISE * own))

    def objective_value(self, objective: Objective, weights: Array) -> Array:
        """Return (M,) seed-averaged objectives at the target of (M, K) weights."""
        losses = self.losses(weights)
        return objective.value({f"loss/{name}": losses[:, j] for j, name in enumerate(self.eval_sets)})

    def optimum(self, objective: Objective, constraints: Constraints) -> tuple[Mixture, float]:
        """Return the best feasible mixture at the target and its objective."""
        picked = [self.eval_sets.index(name.removeprefix("loss/")) for name in objective.columns]
        matrix = np.array(self.slopes)[picked]

        def columns(w: Array) -> tuple[Array, Array]:
            return self.losses(w[None])[0, picked], np.exp(matrix @ w)[:, None] * matrix

        start = constraints.interior_point()
        best = minimize(
            columns, Reduction.of(objective), constraints=constraints, starts=start[None], penalty=KLPenalty(start)
        )
        return Mixture.normalized(self.domains, best), float(self.objective_value(objective, best[None])[0])


@dataclass(frozen=True)
class SyntheticPredictor:
    """Predicts like an MDE: the ranking nearly right, the level wrong.

    Attributes:
        problem: The truth.
        shift: Error of the level, nats per token.
        stretch: Factor on the part that depends on the mixture.
        error: Standard deviation of the errors of the slopes a.
        seed: Of these errors.
    """

    problem: SyntheticProblem
    shift: float = -0.2
    stretch: float = 0.8
    error: float = 0.1
    seed: int = 0

    @property
    def domains(self) -> tuple[str, ...]:
        """K names."""
        return self.problem.domains

    @property
    def columns(self) -> tuple[str, ...]:
        """J losses."""
        return tuple(f"loss/{name}" for name in self.problem.eval_sets)

    def predict(self, weights: Array) -> Array:
        """Return (M, J) losses."""
        level = np.array(self.problem.floors) + self.shift
        return np.asarray(level + self.stretch * np.exp(weights @ self._slopes.T), dtype=np.float64)

    def gradient(self, weights: Array) -> Array:
        """Return (M, J, K) derivatives."""
        return np.asarray(self.stretch * np.exp(weights @ self._slopes.T)[..., None] * self._slopes, dtype=np.float64)

    def num_tokens(self, column: str) -> int:
        """Return as many as make no noise."""
        return 1_000_000

    @property
    def _slopes(self) -> Array:
        true = np.array(self.problem.slopes)
        return np.asarray(true + self.error * seeding.generator(self.seed, "predictor").standard_normal(true.shape))


@dataclass(frozen=True)
class SyntheticEvaluator:
    """Measures trials on a synthetic problem at once; plain data.

    Attributes:
        problem: The truth.
        ladder: Rungs and their prices.
    """

    problem: SyntheticProblem
    ladder: Ladder

    def fingerprint(self, trials: Sequence[Trial], kind: str) -> str:
        """Return the content hash of problem, ladder and trials."""
        rungs = [asdict(rung) for rung in self.ladder]
        runs = [[t.mixture.as_dict(), t.seed, t.fidelity, t.parent_fidelity] for t in trials]
        return fingerprint([kind, asdict(self.problem), rungs, self.ladder.fixed_cost, runs])

    def evaluate(self, job: Job, directory: Path) -> Sequence[TrialResult]:
        """Return one result per trial, with an observation at every rung it passes."""
        return tuple(TrialResult(trial.id, Status.DONE, self.observe(trial)) for trial in job.trials)

    def observe(self, trial: Trial) -> tuple[Observation, ...]:
        """Return the observations of one trial, cheapest rung first."""
        observations, reached = [], trial.parent_fidelity
        for rung in self.ladder.nested(trial.fidelity, above=reached):
            values = self.problem.measured(trial, rung.name, self.ladder.position(rung.name))
            losses = dict(zip(self.problem.eval_sets, values.tolist(), strict=True))
            cost = self.ladder.price(rung.name, start=reached)
            if reached != trial.parent_fidelity:  # the fixed part of a charge is paid once per run
                cost -= self.ladder.fixed_cost
            observations.append(
                Observation(
                    trial.id, rung.name, losses, cost=cost, flops=rung.flops, process_seconds=1e-6, wall_seconds=1e-6
                )
            )
            reached = rung.name
        return tuple(observations)


def simulate(
    optimizer: Optimizer, evaluator: SyntheticEvaluator, *, budget: float, batch: int, seed: int, rounds: int = 1000
) -> History:
    """Play propose and evaluate until nothing is proposed any more; nothing is stored.

    Args:
        optimizer: Decides.
        evaluator: Measures.
        budget: Runs of the top rung.
        batch: Proposals per round.
        seed: Root of the trials' seeds; a continuation keeps its parent's.
        rounds: Most rounds to play.
    """
    history = History()
    for _ in range(rounds):
        left = budget - history.spent(evaluator.ladder)
        trials = [
            _trial(p, history, number, seed) for number, p in enumerate(optimizer.propose(history, batch, budget=left))
        ]
        if not trials:
            break
        history = finished(history, trials, evaluator)
    return history


def finished(history: History, trials: Sequence[Trial], evaluator: SyntheticEvaluator) -> History:
    """Return the history with these trials evaluated."""
    done = tuple(trial.with_status(Status.DONE) for trial in trials)
    seen = tuple(observation for trial in trials for observation in evaluator.observe(trial))
    return History(history.trials + done, history.observations + seen)


def _trial(proposal: Proposal, history: History, number: int, seed: int) -> Trial:
    index = len(history.trials) + number
    parent = history.trial(proposal.parent) if proposal.parent else None
    return Trial(
        f"search-{index:03d}",
        Role.SEARCH,
        proposal.mixture,
        proposal.fidelity,
        parent.seed if parent else seeding.derive(seed, "trial", index),
        proposal.proposed_by,
        proposal.reason,
        proposal.value,
        parent=proposal.parent,
        parent_kind="continued" if parent else None,
        parent_fidelity=proposal.parent_fidelity,
    )
