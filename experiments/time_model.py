"""How long a run takes on this machine, learned from runs that were logged.

    seconds = t0 + t_F C + t_E n_l E steps

per leg (the way from one rung to the next): t0 for measuring and starting, t_F per
training FLOP (the inverse of the speed reached), t_E per feed-forward expert, block and
step (small matrix products and sorting). For estimates, and for prices that a user may
put into the study file; the search's costs never follow it by themselves.

Source: METHODS 4.5 (`seconds = t0 + C/(mfu peak) + t_e n_l E steps`), by non-negative
least squares on relative errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.fidelity import Fidelity, Ladder
from mixopt.proxies.config import ProxyConfig
from mixopt.study import Study

FEWEST_RUNS = 3
# Runs of one shape and length cannot tell the three parts apart: doubtful time goes to the FLOPs.
_DOUBT = 0.1


@dataclass(frozen=True)
class Leg:
    """A stretch of training that is timed as a whole.

    Attributes:
        flops: Training FLOPs.
        expert_steps: Blocks x feed-forward experts x optimizer steps; 0 for a dense proxy.
    """

    flops: float
    expert_steps: float


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a leg, all parts non-negative.

    Attributes:
        fixed: Process seconds per leg.
        per_flop: Process seconds per training FLOP.
        per_expert_step: Process seconds per expert, block and step.
    """

    fixed: float
    per_flop: float
    per_expert_step: float

    @classmethod
    def fit(cls, legs: Sequence[Leg], seconds: Sequence[float]) -> TimeModel:
        """Fit on logged legs and their process seconds, all positive."""
        from scipy.optimize import nnls

        measured = np.asarray(seconds, dtype=float)
        parts = np.array([[1.0, leg.flops, leg.expert_steps] for leg in legs]) / measured[:, None]
        # Columns as shares of the mean time, so that the doubt weighs the same in any unit.
        scale = parts.mean(0)
        scale[scale == 0] = 1.0
        doubt = np.diag([_DOUBT, 0.0, _DOUBT])
        shares, _ = nnls(np.vstack([parts / scale, doubt]), np.concatenate([np.ones(len(legs)), np.zeros(3)]))
        return cls(*(shares / scale).tolist())

    def seconds(self, legs: Iterable[Leg]) -> float:
        """Return the process seconds of a run made of these legs."""
        return sum(self.fixed + self.per_flop * leg.flops + self.per_expert_step * leg.expert_steps for leg in legs)


def legs_to(rung: Fidelity, ladder: Ladder, config: ProxyConfig) -> list[Leg]:
    """Return the legs of a run from scratch to a rung."""
    nested = ladder.nested(rung.name)
    tokens = [0, *(r.num_tokens for r in nested)]
    flops = [0.0, *(r.flops for r in nested)]
    experts = 0 if config.router == "dense" else config.depth * config.experts
    return [
        Leg(flops[i + 1] - flops[i], experts * (config.num_steps(tokens[i + 1]) - config.num_steps(tokens[i])))
        for i in range(len(nested))
    ]


def seconds_per_rung(model: TimeModel, ladder: Ladder, shapes: Mapping[str, ProxyConfig]) -> dict[str, float]:
    """Return {rung: process seconds of a run from scratch to it}.

    Args:
        model: Fitted.
        ladder: All rungs.
        shapes: {model name: shape} of every rung.
    """
    return {rung.name: model.seconds(legs_to(rung, ladder, shapes[rung.model])) for rung in ladder}


def fit_study(study: Study, models: Mapping[str, ProxyConfig]) -> tuple[TimeModel, int] | None:
    """Fit on what a study has logged; returns the model and the number of runs.

    Args:
        study: Its current trials count.
        models: {model name: shape}; runs of other shapes are left out.

    Returns:
        None before `FEWEST_RUNS` runs.
    """
    if not study.headers:
        return None
    ladder, timed = study.header.ladder, []
    for observation in study.history().observations:
        rung = ladder[observation.fidelity]
        if observation.process_seconds > 0 and rung.model in models:
            leg = legs_to(rung, ladder, models[rung.model])[-1]
            timed.append((observation.trial, leg, observation.process_seconds))
    num_runs = len({trial for trial, _, _ in timed})
    if num_runs < FEWEST_RUNS:
        return None
    return TimeModel.fit([leg for _, leg, _ in timed], [seconds for _, _, seconds in timed]), num_runs
