"""Which run to buy next: the action with the largest expected gain per charge.

Actions are fresh runs at any rung, over the whole polytope, and continuations of
finished trials to higher rungs of their model shape; of both only mixtures that may
still be the best one. Far from the optimum a run would teach most about the surrogate's
own assumptions (a slope, say), which hold there least. All rungs are compared on the
pool first; only the two most promising are refined by continuous optimization. Where a
list of candidates is given, its rows are the actions and nothing else.

The gain of a run is its knowledge gradient; at the target, its expected improvement on
what is verified if that is larger. So cheap runs are bought as long as they make the
next target run better by more per charge than that run itself is worth. Dividing the
gain by the charge follows Snoek et al. 2012 (arXiv:1206.2944, Section 3.2).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from botorch.exceptions.errors import BotorchError
from botorch.optim import optimize_acqf
from botorch.utils.sampling import manual_seed
from torch import Tensor

from mixopt.constraints import Constraints
from mixopt.fidelity import Fidelity, Ladder
from mixopt.mixture import Array

from . import simplex
from .acquisition import Beliefs, KnowledgeGradient
from .pool import Pool

logger = logging.getLogger(__name__)

NUM_REFINED_RUNGS = 2
WORTH_REFINING = 0.5  # share of the best rate that a rung's best pool point must reach
NUM_STARTS = 3
_MAX_STEPS = 10
_SAME = 1e-3  # total variation below which two mixtures count as one
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, eq=False)
class Parent:
    """A finished trial that can be continued.

    Attributes:
        trial: Its id.
        weights: (K,) its mixture.
        fidelity: Rung it reached.
        group: Number of its root.
    """

    trial: str
    weights: Array
    fidelity: str
    group: float


@dataclass(frozen=True, eq=False)
class Action:
    """A run that could be bought.

    Attributes:
        weights: (K,) mixture.
        fidelity: Rung it trains to.
        price: Charge, in runs of the top rung.
        gain: Expected gain, objective units.
        group: Number of its trial's root.
        parent: Trial it continues, or None.
        refined: False if continuous optimization failed and a pool point stands in.
    """

    weights: Array
    fidelity: str
    price: float
    gain: float
    group: float
    parent: Parent | None = None
    refined: bool = True

    @property
    def rate(self) -> float:
        """Expected gain per run of the top rung."""
        return self.gain / self.price


@dataclass(frozen=True, eq=False)
class Market:
    """What can be bought now.

    Attributes:
        constraints: The polytope.
        ladder: All rungs.
        parents: Trials that can be continued.
        taken: (weights, rung) that are pending or failed and must not be bought again.
        budget: Runs of the top rung.
        group: Number of a fresh trial.
        seed: For the continuous optimizer.
        listed: The only runs that can be bought, or None.
        dropped: Rungs that are not worth buying.
    """

    constraints: Constraints
    ladder: Ladder
    parents: Sequence[Parent]
    taken: Sequence[tuple[Array, str]]
    budget: float
    group: float
    seed: int
    listed: Pool | None = None
    dropped: frozenset[str] = frozenset()

    def best(self, beliefs: Beliefs, normals: Tensor) -> Action | None:
        """Return the affordable action with the largest gain per charge, or None."""
        if self.listed is not None:
            return self._from_list(self.listed, beliefs, normals)
        continued = list(self._continued(beliefs, normals))
        pooled = list(self._fresh(beliefs, normals, beliefs.may_be_best(beliefs.pool)))
        if not pooled and not continued:  # all that may be best is being trained
            pooled = list(self._fresh(beliefs, normals, torch.ones(len(beliefs.pool), dtype=torch.bool)))
        pooled.sort(key=lambda pair: -pair[0].rate)
        actions = [action for action, _ in pooled] + continued
        bar = WORTH_REFINING * max((action.rate for action in actions), default=0.0)
        promising = [pair for pair in pooled[:NUM_REFINED_RUNGS] if pair[0].rate >= bar]
        actions = [self._refine(beliefs, normals, *pair) for pair in promising] + actions
        best = max(actions, key=lambda action: action.rate, default=None)
        return best if best is None or best.gain > _NEGLIGIBLE else self._check(actions)

    def _from_list(self, pool: Pool, beliefs: Beliefs, normals: Tensor) -> Action | None:
        """Return the best row of the list; where nothing is left to gain, the dearest run of the best mixture."""
        able = [i for i, price in enumerate(pool.prices) if self.affords(price)]
        useful = [i for i in able if pool.fidelities[i] not in self.dropped] or able
        rungs, gains = np.array(pool.fidelities), np.zeros(len(pool))
        for rung in dict.fromkeys(rungs[useful].tolist()):
            rows = np.array([i for i in useful if rungs[i] == rung])
            gains[rows] = self._gains(beliefs, normals, rung, torch.tensor(pool.weights[rows]))
        if not useful:
            return None
        best = max(useful, key=lambda i: gains[i] / pool.prices[i])
        if gains[best] <= _NEGLIGIBLE:
            with torch.no_grad():
                predicted = beliefs.predicted(torch.tensor(pool.weights)).numpy()
            best = min(useful, key=lambda i: (-pool.prices[i], predicted[i]))
        return Action(
            pool.weights[best], pool.fidelities[best], float(pool.prices[best]), float(gains[best]), self.group
        )

    def _check(self, actions: Sequence[Action]) -> Action:
        """Return the dearest fresh run there is: where nothing is left to gain, measure better what is best."""
        return max((action for action in actions if action.parent is None), key=lambda a: a.price, default=actions[0])

    def affords(self, price: float) -> bool:
        """Whether the budget pays a charge."""
        return price <= self.budget + 1e-9

    def is_taken(self, weights: Array, fidelity: str) -> bool:
        """Whether a mixture is already pending, or failed, at a rung."""
        return any(rung == fidelity and same_mixture(w, weights) for w, rung in self.taken)

    def _fresh(self, beliefs: Beliefs, normals: Tensor, able: Tensor) -> Iterable[tuple[Action, Array]]:
        """Yield per rung the best action among the (M,) able ones of the pool, and (R, K) points to refine it from."""
        for rung in self.ladder:
            if not self.affords(rung.cost) or rung.name in self.dropped:
                continue
            gains = self._gains(beliefs, normals, rung.name)
            open_points = [
                i
                for i in np.argsort(-gains, kind="stable")
                if able[i] and not self.is_taken(beliefs.pool[i].numpy(), rung.name)
            ]
            # All gains 0: the stable order keeps the pool's, whose first point is the best mixture.
            if open_points:
                starts = beliefs.pool[open_points[:NUM_STARTS]].numpy()
                yield Action(starts[0], rung.name, rung.cost, float(gains[open_points[0]]), self.group), starts

    def _gains(self, beliefs: Beliefs, normals: Tensor, fidelity: str, weights: Tensor | None = None) -> Array:
        points = beliefs.pool if weights is None else weights
        acquisition = KnowledgeGradient(beliefs, normals, self.ladder.index(fidelity), self.group)
        with torch.no_grad():
            gains = acquisition.gain(points, torch.full((len(points),), self.group, dtype=torch.float64))
            if fidelity == self.ladder.target.name:
                gains = torch.maximum(gains, beliefs.improvement(points, normals))
        return np.asarray(gains.numpy(), dtype=np.float64)

    def _refine(self, beliefs: Beliefs, normals: Tensor, action: Action, starts: Array) -> Action:
        if action.gain <= _NEGLIGIBLE or not simplex.has_freedom(self.constraints):
            return action
        rung = self.ladder.index(action.fidelity)
        acquisition = KnowledgeGradient(beliefs, normals, rung, self.group, unit=action.gain)
        try:
            found = self._optimize(acquisition, starts)
        except (BotorchError, RuntimeError, ValueError) as error:
            logger.warning("acquisition not refined, pool point taken fidelity=%s error=%s", action.fidelity, error)
            return Action(action.weights, action.fidelity, action.price, action.gain, action.group, refined=False)
        weights = simplex.clean(found, self.constraints).weights
        point = torch.tensor(weights)[None]
        gain = float(self._gains(beliefs, normals, action.fidelity, point)[0])
        if gain <= action.gain or self.is_taken(weights, action.fidelity) or not beliefs.may_be_best(point)[0]:
            return action
        return Action(weights, action.fidelity, action.price, gain, action.group)

    def _optimize(self, acquisition: KnowledgeGradient, starts: Array) -> Array:
        with manual_seed(self.seed % 2**31), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # step limits are meant; the best point found is what counts
            found, _ = optimize_acqf(
                acquisition,
                bounds=simplex.bounds(self.constraints),
                q=1,
                num_restarts=len(starts),
                batch_initial_conditions=torch.tensor(starts)[:, None],
                equality_constraints=simplex.equalities(self.constraints),
                inequality_constraints=simplex.inequalities(self.constraints) or None,
                options={"maxiter": _MAX_STEPS},
            )
        return np.asarray(found[0].detach().numpy(), dtype=np.float64)

    def _continued(self, beliefs: Beliefs, normals: Tensor) -> Iterable[Action]:
        for rung in self.ladder:
            able = [
                p
                for p in self.parents
                if self._continues(p, rung) and bool(beliefs.may_be_best(torch.tensor(p.weights)[None])[0])
            ]
            if not able:
                continue
            acquisition = KnowledgeGradient(beliefs, normals, self.ladder.index(rung.name), self.group)
            groups = torch.tensor([p.group for p in able], dtype=torch.float64)
            with torch.no_grad():
                gains = acquisition.gain(torch.tensor(np.array([p.weights for p in able])), groups)
            for parent, gain in zip(able, gains.tolist(), strict=True):
                price = self.ladder.price(rung.name, start=parent.fidelity)
                yield Action(parent.weights, rung.name, price, gain, parent.group, parent)

    def _continues(self, parent: Parent, rung: Fidelity) -> bool:
        reached = self.ladder[parent.fidelity]
        higher = rung.model == reached.model and rung.num_tokens > reached.num_tokens
        affordable = higher and self.affords(self.ladder.price(rung.name, start=parent.fidelity))
        return affordable and not self.is_taken(parent.weights, rung.name)


def same_mixture(a: Array, b: Array) -> bool:
    """Whether two (K,) weights differ in less than 0.1% of the tokens."""
    return 0.5 * float(np.abs(a - b).sum()) < _SAME
