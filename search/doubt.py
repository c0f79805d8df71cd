"""Whether a column is better off without the predictor: the evidence of the runs so far.

A predictor's ranking is mostly right; where it is not, a prior mean that misleads costs
more than one that says nothing. Three answers, by its correlation with what was measured:

    sound         kept, without asking further
    misleading    dropped: surely not even half right, such as of the wrong sign
    in between    dropped if without it mixtures are clearly better predicted

In between, both processes predict every mixture from all the others, experts' runs
included where the predictor is not used; the sum of the differences of their log
densities must exceed a margin and its own noise. Whole mixtures are left out, all their
rungs and seeds at once: a run left out alone is told by its siblings, whatever the prior
mean. Density alone is not enough: a process soon learns to expect little of a misleading
prior mean near what was measured, while the search follows it away from there.

    N rows, G mixtures
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from mixopt.mixture import Array

from .gp import Posterior

FEWEST_TO_CORRELATE = 4  # mixtures at one rung
FEWEST_TO_COMPARE = 8  # mixtures; so many differences have a spread
SOUND = 0.7  # correlation with measured values, half of the variance; of the MDE it is 0.8 to 0.97 (PROXIES 5)
USEFUL = 0.5
QUANTILE = 1.645  # two-sided 90%
MARGIN = 3.0  # nats: 20 to 1
STANDARD_ERRORS = 2.0


def correlation(values: Array, predicted: Array, rungs: Array) -> float:
    """Return the correlation of (N,) values with predictions within rungs; 0 where one of them does not vary."""
    a, b = _within(values, rungs), _within(predicted, rungs)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else 0.0


def _within(values: Array, rungs: Array) -> Array:
    """Return (N,) values less the mean of their rung."""
    centered = values.astype(np.float64)
    for rung in np.unique(rungs):
        centered[rungs == rung] -= centered[rungs == rung].mean()
    return centered


def is_misleading(correlation_: float, num: int) -> bool:
    """Whether the correlation over `num` mixtures is surely not useful: its 90% interval ends below 0.5.

    Of four mixtures with a true correlation of 0.9, 1 in 400 looks like that. The
    interval is Fisher's (1921).
    """
    if num < FEWEST_TO_CORRELATE:
        return False
    return math.atanh(max(-0.999, min(0.999, correlation_))) + QUANTILE / math.sqrt(num - 3) < math.atanh(USEFUL)


def log_densities(posterior: Posterior, mixtures: Array, scale: float) -> dict[int, float]:
    """Return {mixture: log density of its values given those of all others}.

    With P the precision of all values, those left out have covariance `inv(P_gg)` and
    residuals `inv(P_gg) (P y)_g`.

    Args:
        posterior: A process with its values.
        mixtures: (N,) number of each row's mixture.
        scale: Column units per unit of the process, so that processes in different units compare.

    Source: Rasmussen and Williams 2006, Section 5.4.2, Eqs. 5.10 to 5.12, for blocks.
    """
    precision, dual = torch.cholesky_inverse(posterior.factor).numpy(), posterior.dual.numpy()
    found = {}
    for mixture in np.unique(mixtures).tolist():
        rows = np.flatnonzero(mixtures == mixture)
        block, half = precision[np.ix_(rows, rows)], dual[rows]
        misfit = float(half @ np.linalg.solve(block, half))
        unit = math.log(2 * math.pi) + 2 * math.log(scale)
        found[mixture] = 0.5 * (float(np.linalg.slogdet(block)[1]) - misfit - len(rows) * unit)
    return found


def is_worse(trusted: Mapping[int, float], rival: Mapping[int, float]) -> bool:
    """Whether the first process clearly predicts worse than the second.

    Args:
        trusted: {mixture: log density} under the predictor.
        rival: Likewise without it; mixtures that only one knows do not count.

    Source: Vehtari, Gelman and Gabry 2017, arXiv:1507.04544, Section 5.2, for the
    standard error of the sum; the margin is ours.
    """
    gains = np.array([rival[mixture] - trusted[mixture] for mixture in trusted.keys() & rival.keys()])
    if len(gains) < FEWEST_TO_COMPARE:
        return False
    error = float(gains.std(ddof=1)) * math.sqrt(len(gains))
    return float(gains.sum()) > max(MARGIN, STANDARD_ERRORS * error)
