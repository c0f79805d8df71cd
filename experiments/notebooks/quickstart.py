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
# # Look at a finished study
#
# `mixopt run` leaves a run directory. Everything the report shows can be asked of it here, a figure at a time. Nothing is trained.

# %%
from pathlib import Path

from mixopt.experiments import build, figures
from mixopt.experiments.comparison import compare
from mixopt.experiments.sentences import gain_sentences
from mixopt.experiments.whatif import WhatIf
from mixopt.study import Study

RUN = Path("runs/quickstart")  # the run directory; the working directory is where `mixopt run` was called
study = Study(RUN)
study

# %% [markdown]
# ## What mixture, and how firm is each weight

# %%
study.recommendation.to_frame()

# %%
optimizer = build.open_optimizer(build.locate(RUN), study)
around = WhatIf.of(study, optimizer)
figures.mixture_bars(study, around)

# %% [markdown]
# ## What gain
#
# Fresh seeds that the search has not seen; the sentences say when a difference is no more than noise.

# %%
gain_sentences(study, compare(study))

# %%
figures.predicted_and_measured(study)

# %% [markdown]
# ## What each domain does
#
# The objective as one weight moves and the others keep their proportions. Every figure has its numbers in `rows`.

# %%
curves = figures.response_curves(around)
curves

# %%
import pandas as pd

pd.DataFrame(curves.rows).groupby("domain")[["mean", "std"]].min()

# %% [markdown]
# ## Was the surrogate right

# %%
figures.calibration(around)

# %% [markdown]
# ## Every run
#
# One row per observation, losses in nats per token.

# %%
study.to_frame().head()

# %% [markdown]
# ## A mixture of your own

# %%
from mixopt.mixture import Mixture

uniform = Mixture.uniform(study.header.domain_names)
answer = optimizer.predict(
    study.history(), [study.recommendation.mixture, uniform], fidelity=study.header.ladder.target.name
)
pd.DataFrame({"mean": answer.mean["objective"], "std": answer.std["objective"]}, index=["recommended", "uniform"])
