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
# # Explore trade-offs without new runs
#
# The surrogate predicts every column by itself and adds them up afterwards. So other weights of the objective, or other constraints, need no new run: only another sum. Here on the public runs that come with mixopt.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from mixopt.constraints import Constraints
from mixopt.experiments.figures_tradeoffs import pareto
from mixopt.experiments.public import resolve
from mixopt.mixture import Mixture
from mixopt.objective import Objective
from mixopt.runs import read_runs
from mixopt.search.catalog import Task, make

TEXT, CODE = "loss/jargon", "loss/python_heldout"
runs = read_runs(resolve(Path("builtin:runs/proxies.csv")))
runs = runs.select(row for row, run in enumerate(runs.runs) if run.endswith("-0@top") and row % 4 == 1)
domains, ladder, history = runs.domains, runs.ladder("top"), runs.history()
print(f"{len(runs)} runs of {len(domains)} domains")

# %% [markdown]
# ## One prediction, many objectives
#
# 2,000 mixtures are predicted once. Then each weighting picks its own best.

# %%
objective = Objective.parse({TEXT: 0.5, CODE: 0.5}, list(runs.columns))
optimizer = make("mfbo", Task(Constraints.simplex(domains), ladder, objective, seed=0))
rng = np.random.default_rng(0)
weights = rng.dirichlet(np.full(len(domains), 0.5), size=2000)
mixtures = [Mixture.normalized(domains, row) for row in weights]
answer = optimizer.predict(history, mixtures, fidelity="top")
columns = np.stack([answer.mean[TEXT], answer.mean[CODE]], axis=-1)


def best_for(text_share: float, allowed: np.ndarray) -> dict[str, object]:
    """Return the best allowed mixture where the text counts that much and code the rest."""
    total = columns @ [text_share, 1 - text_share]
    place = int(np.where(allowed, total, np.inf).argmin())
    top = sorted(mixtures[place].as_dict().items(), key=lambda item: -item[1])[:3]
    return {
        "weight of text": text_share, TEXT: columns[place, 0], CODE: columns[place, 1],
        "largest shares": ", ".join(f"{name} {share:.2f}" for name, share in top),
    }  # fmt: skip


shares = (0.0, 0.25, 0.5, 0.75, 1.0)
everything = np.ones(len(mixtures), dtype=bool)
pd.DataFrame([best_for(share, everything) for share in shares]).round(3)

# %% [markdown]
# ## The Pareto front
#
# Mixtures that no other one is predicted to beat on both columns. The standard deviations say how seriously to take it.

# %%
front = pareto(columns)
ends = columns[front].max(axis=0) - columns[front].min(axis=0)
typical = [float(np.median(answer.std[name][front])) for name in (TEXT, CODE)]
print(f"{front.sum()} of {len(mixtures)} mixtures are on the front.")
for name, width, std in zip((TEXT, CODE), ends, typical, strict=True):
    verdict = "a real choice" if width > 2 * std else "within the uncertainty: there is hardly anything to trade"
    print(f"{name}: the front spans {width:.3f}, one standard deviation is {std:.3f}; {verdict}.")

# %% [markdown]
# ## Constraints
#
# At most a quarter of Python, at least a tenth of math: what does that cost?

# %%
lower = np.array([0.1 if name == "math" else 0.0 for name in domains])
upper = np.array([0.25 if name == "python" else 1.0 for name in domains])
constraints = Constraints(domains, lower, upper)
allowed = np.array([constraints.allows(mixture) for mixture in mixtures])
both = pd.DataFrame([best_for(0.5, everything), best_for(0.5, allowed)], index=["free", "constrained"])
both.round(3)

# %% [markdown]
# The search itself knows constraints, and is not limited to a sample:

# %%
constrained = make("mfbo", Task(constraints, ladder, objective, seed=0)).recommend(history)
constrained
