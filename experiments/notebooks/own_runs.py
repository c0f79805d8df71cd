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
# # Bring your own runs
#
# Finished runs are a table: a row per run, `weight/<domain>`, `loss/<name>`, a `fidelity` and its `cost`. RegMix and olmix files become one with `mixopt convert`. Here the public runs that come with mixopt stand for yours. Nothing is trained.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from mixopt.experiments import figures
from mixopt.experiments.external import ExternalStudy
from mixopt.experiments.from_runs import predict_from_runs
from mixopt.experiments.public import resolve
from mixopt.mixture import Mixture
from mixopt.runs import read_runs
from mixopt.study import Study

TABLE = resolve(Path("builtin:runs/proxies.csv"))  # or Path("runs.csv")
OBJECTIVE = "mean(loss/jargon, loss/python_heldout)"

table = read_runs(TABLE)
print(f"{len(table)} runs, domains {', '.join(table.domains)}")

# %% [markdown]
# ## Predict what was not trained
#
# Eight mixtures are known at two rungs, eight others are asked about.


# %%
def rows_of(mixtures: range, rungs: tuple[str, ...]) -> list[int]:
    """Return the rows of the first seed of some mixtures: the public ids are m<mixture>-<seed>@<rung>."""
    wanted = {f"m{mixture:02d}-0@{rung}" for mixture in mixtures for rung in rungs}
    return [row for row, run in enumerate(table.runs) if run in wanted]


known = table.select(rows_of(range(0, 48, 6), ("low", "top")))
asked = table.select(rows_of(range(2, 48, 6), ("top",)))
mixtures = [Mixture(table.domains, weights) for weights in asked.weights]
predicted = predict_from_runs(known, mixtures, objective=OBJECTIVE)
measured = predicted.objective.value(asked.columns)
compared = pd.DataFrame(
    {"predicted": predicted.mean["objective"], "std": predicted.std["objective"], "measured": measured},
    index=asked.runs,
)
compared.sort_values("measured").round(3)

# %%
print(
    f"rank correlation with the measured objective: {compared.predicted.corr(compared.measured, method='spearman'):.2f}"
)

# %% [markdown]
# ## What to train next
#
# An external study takes the runs, suggests further ones within a budget, and recommends a mixture at any time. Costs are those of the rungs.

# %%
ladder = known.ladder("top")
study = ExternalStudy.create(
    "runs/own",
    name="own",
    domains=list(table.domains),
    objective=OBJECTIVE,
    ladder={rung.name: rung.cost for rung in ladder},
    search={"optimizer": "mfbo", "budget": 6},
)
study.tell_runs(known)
suggested = study.ask(1)
pd.DataFrame([{"run": s.run, "rung": s.fidelity, "cost": s.cost, **s.weights} for s in suggested]).round(3)

# %%
study.recommend()

# %% [markdown]
# ## The same figures as in the report
#
# A figure that does not apply says why.

# %%
ledger = Study(Path("runs/own"))
figures.convergence(ledger)

# %%
figures.trade_offs(ledger)

# %%
figures.expert_losses(ledger)

# %%
best = int(np.nanargmin(measured))
print(f"of the mixtures asked about, {asked.runs[best]} is the best measured: {measured[best]:.3f}")
