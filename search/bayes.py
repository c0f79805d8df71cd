"""Multi-fidelity Bayesian optimization of mixtures: the optimizer `mfbo`.

An initial design (`initial.py`), then a surrogate per column (`surrogate.py`) and the
action with the largest knowledge gradient per charge (`choice.py`), one slot of the
batch at a time. A function of the history: fits are remembered only by what determines
them. Pool, base samples and local optimizers draw from named streams of one seed.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.convex import KLPenalty, Reduction
from mixopt.errors import ConfigError
from mixopt.fidelity import Ladder
from mixopt.identity import fingerprint
from mixopt.mde import minimize
from mixopt.mixture import Array, Mixture
from mixopt.objective import Objective
from mixopt.observation import History, Role, Status
from mixopt.proposal import Prediction, Proposal, Recommendation
from mixopt.protocols import Predictor

from . import simplex
from .acquisition import NUM_NORMALS, Beliefs, antithetic_normals
from .batch import Batch
from .choice import Action
from .encoding import Encoder, Evidence
from .initial import Slot, affordable, block_size, initial_design, listed_design
from .links import unproven
from .pool import Pool
from .posterior import REGRET_LEVEL, best_mixture, make_pool, possible_regrets, predict, scored
from .surrogate import Fit, Surrogate
from .witness import Witness

logger = logging.getLogger(__name__)

MOST_POOLED = 16  # columns from which links are learned together; the objective's own first
_REMEMBERED = 4


@dataclass(frozen=True, eq=False)
class _State:
    """What follows from the evidence alone: fits, pool, beliefs, and the best mixture."""

    surrogate: Surrogate
    beliefs: Beliefs
    best: Array


@dataclass(frozen=True, eq=False)
class MultiFidelityOptimizer:
    """Expected gain per charge over mixtures, rungs and continuations.

    Attributes:
        constraints: Feasible mixtures.
        ladder: Rungs that can be bought; the last is the target.
        objective: What is minimized.
        predictor: Prior mean such as the MDE, or None.
        seed: Root of all randomness.
        initial: Number of search trials before the acquisition decides; None: `block_size`.
        price: Objective units that one run of the top rung must be expected to gain.
        reference: Mixture of the KL penalty and center of the initial design, or None.
        kl_weight: Objective units per nat of KL(mixture || reference).
        pool: The only runs that can be bought, or None: any feasible mixture at any rung.
    """

    constraints: Constraints
    ladder: Ladder
    objective: Objective
    predictor: Predictor | None
    seed: int
    initial: int | None = None
    price: float = 0.0
    reference: Mixture | None = None
    kl_weight: float = 0.0
    pool: Pool | None = None
    _memory: OrderedDict[str, _State] = field(default_factory=OrderedDict, init=False, repr=False)
    _fits: OrderedDict[str, Fit] = field(default_factory=OrderedDict, init=False, repr=False)
    _warned: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kl_weight < 0 or (self.kl_weight > 0 and self.reference is None):
            raise ConfigError(
                f"kl_weight must be 0, or positive with a reference mixture, got {self.kl_weight:g}; name a reference"
            )
        if self.pool is not None:
            object.__setattr__(self, "pool", self.pool.within(self.constraints))

    @property
    def name(self) -> str:
        """`mfbo`."""
        return "mfbo"

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return up to `num` proposals; empty when nothing is affordable or worth its price."""
        search = history.of(Role.SEARCH)
        listed = None if self.pool is None else self.pool.take(self.pool.left(search))
        batch = Batch(self.constraints, self.ladder, budget=budget, listed=listed)
        for trial in search.trials:
            if trial.status is not Status.DONE:
                batch.taken.append((trial.mixture.over(self.constraints.domains).weights, trial.fidelity))
        slots = self._design(search, num)
        proposals = [self._begin(batch, slot) for slot in slots]
        if num > len(slots):
            proposals += self._buy(batch, history, num - len(slots))
        return [proposal for proposal in proposals if proposal is not None]

    def recommend(self, history: History) -> Recommendation:
        """Return the minimum of the posterior mean of the objective at the target."""
        state = self._state(history)
        mixture = self._mixture(state.best)
        target = self.ladder.target.name
        believed = predict(
            state.surrogate, self.objective, mixture.weights[None], rung=len(self.ladder) - 1, seed=self.seed
        )
        names = [*self.objective.columns, "objective"]
        regrets = possible_regrets(state.beliefs, mixture.weights, seed=seeding.derive(self.seed, "regret"))
        bound = float(np.quantile(regrets, REGRET_LEVEL))
        support = self._support(history)
        knows = self._optimum is not None and not self._abandons(state.surrogate)
        return Recommendation(
            mixture=mixture,
            fidelity=target,
            mean={name: float(believed[name][0][0]) for name in names},
            std={name: float(believed[name][1][0]) for name in names},
            regret_bound=bound,
            support=support,
            recommended_by=self.name,
            reason="; ".join([_reason(len(support), knows, bound), *self._doubts(state.surrogate)]),
            best_probability=float(np.mean(regrets <= state.beliefs.run_noise())),
        )

    def predict(self, history: History, mixtures: Sequence[Mixture], *, fidelity: str) -> Prediction:
        """Return means and standard deviations of all known columns and the objective."""
        evidence = Evidence.of(history, self.ladder, self.constraints.domains)
        weights = np.array([m.over(self.constraints.domains).weights for m in mixtures])
        rung = self.ladder.index(fidelity)
        believed = predict(self._surrogate(evidence), self.objective, weights, rung=rung, seed=self.seed)
        return Prediction(
            fidelity,
            {name: mean for name, (mean, _) in believed.items()},
            {name: std for name, (_, std) in believed.items()},
        )

    def _begin(self, batch: Batch, slot: Slot) -> Proposal | None:
        """Turn a slot of the initial design into a proposal, if it is affordable and new."""
        mixture = self._mixture(slot.weights)
        if slot.price is not None:
            rung = slot.fidelity if batch.affords(slot.price) else None
        else:
            rung = affordable(slot.fidelity, self.ladder, batch.budget)
        if rung is None or (batch.listed is None and batch.is_taken(mixture.weights, rung)):
            logger.info("initial slot dropped fidelity=%s budget=%.3g", slot.fidelity, batch.budget)
            return None
        batch.add(mixture.weights, rung, self.ladder.price(rung) if slot.price is None else slot.price)
        reason = slot.reason if rung == slot.fidelity else f"{slot.reason}; moved to {rung}, which the budget pays"
        return Proposal(mixture, rung, None, reason, proposed_by=self.name)

    def _buy(self, batch: Batch, history: History, num: int) -> list[Proposal | None]:
        """Buy up to `num` actions one by one, each believed before the next is chosen."""
        if batch.budget <= 0:
            return []
        state, count = self._state(history), len(history.of(Role.SEARCH).trials)
        batch.open(state.beliefs, history, state.surrogate.evidence)
        seed = seeding.derive(self.seed, "propose", count)
        normals = antithetic_normals(NUM_NORMALS, len(self.objective.columns), seed)
        proposals: list[Proposal | None] = []
        for slot in range(num):
            dropped = self._unproven(state.surrogate, history, batch)
            batch.dropped = frozenset(dropped)
            action = batch.best(normals, seed=seeding.derive(seed, slot))
            if action is None or action.rate < self.price:
                break
            proposals.append(self._proposal(action, state.best, [*dropped.values(), *self._doubts(state.surrogate)]))
            if slot + 1 < num:  # only the next choice asks what is believed
                batch.buy(action)
        return proposals

    def _unproven(self, surrogate: Surrogate, history: History, batch: Batch) -> dict[str, str]:
        """Return {rung: why} of the cheap rungs that are not bought for now."""
        trials, target = history.of(Role.SEARCH).trials, len(self.ladder) - 1
        spent = [
            batch.spent.get(rung.name, 0.0) + sum(t.price(self.ladder) for t in trials if t.fidelity == rung.name)
            for rung in self.ladder
        ]
        return unproven(
            self.ladder,
            surrogate.rung_links(),
            spent=spent,
            targets=int((surrogate.evidence.rungs == target).sum()),
            trusted=self.predictor is not None and not self._abandons(surrogate),
        )

    def _abandons(self, surrogate: Surrogate) -> bool:
        """Whether the predictor misleads about every column of the objective that it knows."""
        known = [name for name in self.objective.columns if name in self._encoder.known]
        return bool(known) and len(surrogate.doubted(known)) == len(known)

    def _doubts(self, surrogate: Surrogate) -> list[str]:
        """Return, in words, for which columns the predictor is not used; at most one sentence."""
        doubted = surrogate.doubted(surrogate.pooled)
        if not doubted:
            return []
        new = [name for name in doubted if name not in self._warned]
        self._warned.update(new)
        if new:
            logger.warning("predictor dropped columns=%s reason=runs are predicted better without it", ",".join(new))
        return [f"the predictor is not used for {', '.join(doubted)}: runs are predicted better without it"]

    def _proposal(self, action: Action, best: Array, notes: Sequence[str]) -> Proposal:
        mixture = self._mixture(action.weights)
        far = 0.5 * float(np.abs(action.weights - best).sum())
        what = (
            f"continues {action.parent.trial} to {action.fidelity}"
            if action.parent
            else f"new run at {action.fidelity}"
        )
        return Proposal(
            mixture,
            action.fidelity,
            action.rate,
            f"expected gain {action.rate:.3g} per run ({action.gain:.3g} at price {action.price:.3g}): {what}, "
            + "; ".join([f"{far:.0%} of the tokens away from the best mixture known", *notes]),
            parent=action.parent.trial if action.parent else None,
            parent_fidelity=action.parent.fidelity if action.parent else None,
            proposed_by=self.name if action.refined else f"{self.name}:pool",
        )

    def _mixture(self, weights: Array) -> Mixture:
        """Return weights as a mixture; those of a list to the last bit."""
        if self.pool is not None:
            return Mixture(self.constraints.domains, weights)
        return simplex.clean(weights, self.constraints)

    def _state(self, history: History) -> _State:
        """Return fits and pool; remembered by the evidence that determines them."""
        evidence = Evidence.of(history, self.ladder, self.constraints.domains)
        key = fingerprint(evidence.plain())
        if key not in self._memory:
            self._memory[key] = self._learn(evidence)
            while len(self._memory) > _REMEMBERED:
                self._memory.popitem(last=False)
        state = self._memory[key]
        # Equal rows may come with other trials pending: only the numbering of trials differs.
        return replace(state, surrogate=state.surrogate.with_evidence(evidence))

    def _learn(self, evidence: Evidence) -> _State:
        surrogate = self._surrogate(evidence)
        if self.pool is not None:
            beliefs = self._beliefs(surrogate, self.pool.targets(self.ladder))
            return _State(surrogate, beliefs, beliefs.pool[int(beliefs.objective().argmin())].numpy())
        optimum = None if self._abandons(surrogate) else self._optimum
        anchors = np.stack([w for w in (optimum, self._center) if w is not None])
        pool = make_pool(self.constraints, anchors[:1], evidence.weights, self.seed)
        ranked = np.argsort(scored(surrogate, self.objective, pool, self._penalty))
        best = best_mixture(
            surrogate,
            self.objective,
            constraints=self.constraints,
            starts=np.concatenate([anchors[:1], pool[ranked[:2]]]),
            penalty=self._penalty,
        )
        pool = make_pool(self.constraints, np.stack([best, anchors[0]]), evidence.weights, self.seed)
        return _State(surrogate, self._beliefs(surrogate, pool), best)

    def _surrogate(self, evidence: Evidence) -> Surrogate:
        own = self.objective.columns
        other = sorted({name for row in evidence.columns for name in row} - set(own))
        pooled = (*own, *other[: max(0, MOST_POOLED - len(own))])
        surrogate = Surrogate(self._encoder, evidence, pooled, self._fits)
        if len(own) == 1 or (self.predictor is not None and not self._abandons(surrogate)):
            return surrogate
        whole = Surrogate(self._encoder, evidence.combined("objective", self.objective), ("objective",), self._fits)
        return replace(surrogate, whole=whole)

    def _beliefs(self, surrogate: Surrogate, pool: Array) -> Beliefs:
        evidence, points = surrogate.evidence, torch.tensor(pool)
        measured = {w.tobytes() for w in evidence.weights[evidence.rungs == len(self.ladder) - 1]}
        names = self.objective.columns
        with torch.no_grad():
            believed = Beliefs(
                self._encoder,
                tuple(surrogate.column(name) for name in names),
                Reduction.of(self.objective),
                self._penalty,
                points,
                self._encoder.encode(points),
                torch.tensor(surrogate.correlation(names)),
                closed=self.pool is not None,
                verified=tuple(i for i, w in enumerate(pool) if w.tobytes() in measured),
            )
            others = tuple(replace(believed, columns=columns) for columns in surrogate.alternatives(names))
            if not others or len(believed.verified) > 1:
                return replace(believed, alternatives=others)
            witness = Witness(self._encoder, tuple(map(surrogate.column, surrogate.pooled)))
            return replace(believed, alternatives=others, witness=witness)

    def _design(self, search: History, num: int) -> list[Slot]:
        """Return the next slots of the initial design, at most `num`."""
        count = len(search.trials)
        size = block_size(len(self.constraints.domains), self.ladder) if self.initial is None else self.initial
        if self.pool is not None:
            missing, left = max(0, min(num, size - count)), self.pool.left(search)
            return listed_design(missing, pool=self.pool, left=left, ladder=self.ladder, seed=self.seed)
        design = initial_design(
            size,
            constraints=self.constraints,
            ladder=self.ladder,
            optimum=self._optimum,
            center=self._center,
            seed=self.seed,
        )
        return design[count : count + num]

    def _support(self, history: History) -> tuple[str, ...]:
        observed = {observation.trial for observation in history.observations}
        return tuple(t.id for t in history.trials if t.id in observed and t.role is not Role.VALIDATION)

    @cached_property
    def _center(self) -> Array:
        if self.reference is None:
            return self.constraints.interior_point()
        return np.asarray(self.constraints.pull_inside(self.reference.over(self.constraints.domains).weights)[0])

    @cached_property
    def _penalty(self) -> KLPenalty:
        reference = self._center if self.reference is None else self.reference.over(self.constraints.domains).weights
        return KLPenalty(reference, self.kl_weight)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder.of(self.predictor, self.constraints, self.seed, self.pool)

    @cached_property
    def _optimum(self) -> Array | None:
        """The predictor's optimum, or None without a predictor of the objective."""
        if self.predictor is None:
            return None
        known = [i for i, c in enumerate(self.objective.columns) if c in self.predictor.columns]
        if not known:
            return None
        columns = tuple(self.objective.columns[i] for i in known)
        objective = replace(self.objective, columns=columns, weights=self.objective.weights[known])
        reference = Mixture.normalized(self.constraints.domains, self._penalty.reference)
        return minimize(
            self.predictor, objective, self.constraints, reference=reference, kl=self.kl_weight
        ).mixture.weights


def _reason(num_trials: int, knows: bool, bound: float) -> str:
    """Say in words what a recommendation rests on."""
    basis = f"{num_trials} measured trials" if num_trials else "no measured trial"
    if knows:
        basis = f"the predictor and {basis}" if num_trials else "the predictor alone"
    return (
        f"smallest posterior mean of the objective at the target, from {basis}; "
        f"with probability 0.95 no mixture is better by more than {bound:.3g}"
    )
