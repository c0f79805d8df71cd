"""Every optimizer by name, made from one description of what it is asked to solve.

Imports are inside the makers, so that listing names loads neither torch nor BoTorch. The
numbers of runs of published methods stand here; what they do is in the modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mixopt.constraints import Constraints
from mixopt.errors import ConfigError, did_you_mean
from mixopt.fidelity import Ladder
from mixopt.objective import Objective
from mixopt.protocols import Optimizer, Predictor

from .pool import Pool

if TYPE_CHECKING:
    from .rivals import Learner

REGMIX_RUNS = 512  # published (METHODS 10.1)
OLMIX_FACTOR = 3  # times K + 1: the published swarm (METHODS 2.3)
CLIMB_ROUNDS = (64, 32, 16)  # published, 4:2:1 (METHODS 2.6)
TWO_STEP_RUNS = 64  # 32 to 64 cheap runs were worth most in replays (METHODS 2.4)


@dataclass(frozen=True, eq=False)
class Task:
    """What an optimizer is asked to solve.

    Attributes:
        constraints: Feasible mixtures.
        ladder: Rungs and prices; the last is the target.
        objective: What is minimized.
        seed: Root of all randomness.
        pool: The only runs that can be bought, or None: any feasible mixture at any rung.
        predictor: What is known before any run, such as the MDE, or None.
    """

    constraints: Constraints
    ladder: Ladder
    objective: Objective
    seed: int
    pool: Pool | None = None
    predictor: Predictor | None = None

    @property
    def searched(self) -> dict[str, Any]:
        """What every baseline is told: all but the predictor."""
        return {name: value for name, value in vars(self).items() if name != "predictor"}


NEED_PREDICTOR = frozenset({"mfbo+mde", "mde"})


def names() -> tuple[str, ...]:
    """Return all names, ours first."""
    return tuple(_MAKERS)


def make(name: str, task: Task) -> Optimizer:
    """Return the optimizer called `name`.

    Raises:
        ConfigError: If there is none, or it cannot solve this task.
    """
    if name not in _MAKERS:
        raise ConfigError(f"unknown optimizer {name!r}{did_you_mean(name, _MAKERS)}; known are {', '.join(_MAKERS)}")
    return _MAKERS[name](task)


def _mfbo(task: Task) -> Optimizer:
    from .bayes import MultiFidelityOptimizer

    return MultiFidelityOptimizer(task.constraints, task.ladder, task.objective, None, task.seed, pool=task.pool)


def _mfbo_mde(task: Task) -> Optimizer:
    from .bayes import MultiFidelityOptimizer

    known = _known(task, "mfbo+mde")
    return MultiFidelityOptimizer(task.constraints, task.ladder, task.objective, known, task.seed, pool=task.pool)


def _mde(task: Task) -> Optimizer:
    from .rivals import PredictedOptimizer

    return PredictedOptimizer(**task.searched, predictor=_known(task, "mde"))


def _known(task: Task, name: str) -> Predictor:
    if task.predictor is None:
        raise ConfigError(f"{name} needs the experts' scores; give --scores, or choose mfbo")
    return task.predictor


def _two_step(task: Task) -> Optimizer:
    from .rivals import SurrogateLearner

    model = _mfbo(task)
    return _screening(task, "two-step", SurrogateLearner(model, task.constraints.domains), (TWO_STEP_RUNS,))


def _regmix(task: Task, *, label: str, num: int) -> Optimizer:
    from .rivals import TreesLearner

    return _screening(task, label, TreesLearner(task.objective, task.constraints.domains, task.seed), (num,))


def _olmix(task: Task) -> Optimizer:
    from .rivals import LawLearner

    num = OLMIX_FACTOR * (len(task.constraints.domains) + 1)
    return _screening(task, "olmix", LawLearner(task.objective, task.constraints.domains), (num,))


def _climb(task: Task) -> Optimizer:
    from .rivals import TreesLearner

    # Depth, leaf and penalties of its published code, which also stops early on a tenth of
    # the runs held out; with 64 runs that is noise, and it is left out.
    learner = TreesLearner(task.objective, task.constraints.domains, task.seed, depth=4, leaf=5, penalty=1.0)
    return _screening(task, "climb", learner, CLIMB_ROUNDS)


def _screening(task: Task, label: str, learner: Learner, rounds: tuple[int, ...]) -> Optimizer:
    from .rivals import ScreeningOptimizer

    return ScreeningOptimizer(**task.searched, label=label, learner=learner, rounds=rounds)


def _gp_ei(task: Task) -> Optimizer:
    from .botorch_rivals import ExpectedImprovementOptimizer

    return ExpectedImprovementOptimizer(**task.searched)


def _admire(task: Task) -> Optimizer:
    from .botorch_rivals import EntropySearchOptimizer

    return EntropySearchOptimizer(**task.searched)


def _random(task: Task) -> Optimizer:
    from .baselines import RandomOptimizer

    return RandomOptimizer(**task.searched)


def _sobol(task: Task) -> Optimizer:
    from .baselines import SobolOptimizer

    return SobolOptimizer(**task.searched)


_MAKERS: dict[str, Callable[[Task], Optimizer]] = {
    "mfbo": _mfbo,
    "mfbo+mde": _mfbo_mde,
    "mde": _mde,
    "two-step": _two_step,
    "random": _random,
    "sobol": _sobol,
    "regmix": partial(_regmix, label="regmix", num=REGMIX_RUNS),
    "regmix-128": partial(_regmix, label="regmix-128", num=128),
    "regmix-512": partial(_regmix, label="regmix-512", num=512),
    "olmix": _olmix,
    "climb": _climb,
    "gp-ei": _gp_ei,
    "admire": _admire,
}
