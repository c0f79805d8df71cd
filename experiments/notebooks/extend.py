# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Add an optimizer of your own
#
# An optimizer is a function of the history: what was tried and what it showed. It has three methods (`mixopt.protocols.Optimizer`) and keeps nothing between calls, so resume and replay need nothing more. Here one is written and replayed on finished runs against ours; nothing is trained.
#
# A trainer of your own is the other seam: `ExternalStudy` (the notebook `own_runs`) asks and tells it, or it implements `mixopt.protocols.Evaluator`.

# %%
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mixopt import seeding
from mixopt.experiments.public import resolve
from mixopt.mixture import Mixture
from mixopt.observation import History
from mixopt.proposal import Prediction, Proposal, Recommendation
from mixopt.protocols import Optimizer
from mixopt.runs import read_runs
from mixopt.search.catalog import Task
from mixopt.search.replay import Case, play, replay

# %% [markdown]
# ## Near the best so far
#
# It buys runs of the target rung only: every second one is drawn at random, the others are as near as possible to the best mixture measured.


# %%
@dataclass(frozen=True)
class NearBest:
    """Every second run at random, the others near the best one."""

    task: Task
    name: str = "near-best"

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Choose among the runs that are left and affordable."""
        pool, target = self.task.pool, self.task.ladder.target.name
        left = [i for i in pool.left(history) if pool.fidelities[i] == target and pool.prices[i] <= budget]
        rng = seeding.generator(self.task.seed, self.name, len(history.trials))
        known = self._measured(history)
        if known and len(known) % 2:
            best = min(known, key=lambda item: item[1])[0]
            left.sort(key=lambda i: float(np.abs(pool.weights[i] - best.weights).sum()))
            reason = "near the best so far"
        else:
            left, reason = list(rng.permutation(left)), "at random"
        chosen = left[:1] if num else []
        return [
            Proposal(Mixture(pool.domains, pool.weights[i]), target, None, reason, proposed_by=self.name)
            for i in chosen
        ]

    def recommend(self, history: History) -> Recommendation:
        """Recommend the best one measured."""
        mixture, value = min(self._measured(history), key=lambda item: item[1])
        return Recommendation(
            mixture, self.task.ladder.target.name, {"objective": value}, {"objective": 0.0}, None, (), self.name
        )

    def predict(self, history: History, mixtures: Sequence[Mixture], *, fidelity: str) -> Prediction:
        """Predict the mean of what was measured: this optimizer has no model."""
        values = [value for _, value in self._measured(history)]
        ones = np.ones(len(mixtures))
        return Prediction(fidelity, {"objective": np.mean(values) * ones}, {"objective": np.std(values) * ones})

    def _measured(self, history: History) -> list[tuple[Mixture, float]]:
        trials = {trial.id: trial for trial in history.trials}
        return [(trials[o.trial].mixture, float(self.task.objective.value(o.columns()))) for o in history.observations]


# %% [markdown]
# ## Replay it against ours
#
# Every purchase is charged, and its result seen only then. `area` is the mean regret over the budget beside that of a random run: lower is better. One seed shows how it is done, not who wins: `mixopt replay --seeds 20` compares.

# %%
table = read_runs(resolve(Path("builtin:runs/proxies.csv")))
table = table.select(row for row, run in enumerate(table.runs) if run.endswith("-0@top"))
case = Case.of(table, "top", "mean(loss/jargon, loss/python_heldout)")
own: Optimizer = NearBest(case.task(seed=0))
results = {
    own.name: play(own, case, budget=4),
    "mfbo": replay(case, "mfbo", seed=0, budget=4),
    "random": replay(case, "random", seed=0, budget=4),
}
pd.DataFrame(
    [
        {"optimizer": name, "area": r.score.area, "regret": r.score.regret, "runs": len(r.decisions)}
        for name, r in results.items()
    ]
).round(3)

# %%
pd.DataFrame([{"run": d.run, "value": d.value, "regret": d.regret} for d in results[own.name].decisions]).round(3)
