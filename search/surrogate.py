"""The surrogate: every column over (mixture, rung), with the predictor as prior mean.

One Gaussian process per column (`gp.py`), aggregated after prediction: 13 per-column
fits ranked unseen mixtures far better than one fit of the mean (METHODS 2.4). The
predictor's ranking is right while its level is not (PROXIES 5 and 6), hence

    y(w, f) = m(w) + shift(f) + slope * (m(w) - mean m) + residual(w, f) + trial + noise

in units of the column's scale: the spread of m over feasible mixtures. Without a
predictor, or where the runs speak against it (`doubt.py`), m = 0 and the scale is the
spread of y within rungs. What a cheap rung knows
of the target is learned over several columns together (`links.py`).

Hyperparameters are fitted to the first rows of a history, up to fixed sizes, and every
row conditions the process: answers stay a function of the ordered history, and a fit is
done once per size. M mixtures, N observations, R rungs. Values are in column units
(nats per token, or accuracies); scaled units stay inside `Column`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mixopt.errors import ConfigError
from mixopt.identity import fingerprint
from mixopt.mixture import Array
from mixopt.passages import FEWEST_TOKENS

from . import doubt, gp, links
from .encoding import Encoded, Encoder, Evidence

DEFAULT_SCALE = 0.2  # spread of a loss over Dirichlet mixtures, 0.1 to 0.5 nats per token (PROXIES 5)
RESIDUAL_WITH_PREDICTOR = 0.25  # what mean-shifted MDE leaves: 0.08 of 0.2 to 0.4 nats per token (PROXIES 5)
RESIDUAL_ALONE = 1.0
REFIT_ALWAYS = 8  # rows up to which every new one refits
REFIT_GROWTH = 1.2
# A process fitted to rows is too sure of others; with this factor 90% intervals hold 88-91% of held-out runs (docs/log.md).
UNDERSTATED = 1.15
# A predictor errs more on some mixtures (sparse ones) than the kernel can know: on half of our public set's mixtures
# 1.06 to 1.14 more was missing at 4 to 16 runs (docs/log.md).
UNDERSTATED_BY_PREDICTOR = 1.15
SURE_OF_SPREAD = 10.0  # rows that the processes' own standard deviations count for
SHARED_ERROR, SURE_OF_SHARED = 0.3, 10.0  # correlation of columns' errors before there are rows, and its weight in rows
SAME_LINKS = 0.1  # range of a link over its strata below which they count as one
MOST_TO_FIT = 256  # rows a fit looks at; all rows condition
_REMEMBERED = 256


@dataclass(frozen=True)
class Units:
    """How a column's numbers and the process's are related.

    Attributes:
        index: Place among the predictor's columns, or None if it does not know this one.
        center: Mean of the predictor over feasible mixtures, or 0; column units.
        scale: Unit of the process, column units.
        offsets: (R,) level per rung of the values less the prior mean, in scales.
    """

    index: int | None
    center: float
    scale: float
    offsets: Tensor

    def rows(self, encoded: Encoded, rungs: Tensor | int, groups: Tensor | float = gp.NO_TRIAL) -> Tensor:
        """Return (M, 3K+3) rows at rungs numbered (M,) for trial numbers (M,)."""
        num = len(encoded.inputs)
        columns = [self.prior(encoded), _full(rungs, num), _full(groups, num)]
        return torch.cat([encoded.inputs, encoded.linear, torch.stack(columns, dim=-1)], dim=-1)

    def prior(self, encoded: Encoded) -> Tensor:
        """Return (M,) centered and scaled predictions of the predictor, 0 without one."""
        if self.index is None:
            return torch.zeros(len(encoded.inputs), dtype=torch.float64)
        return (encoded.predicted[:, self.index] - self.center) / self.scale


@dataclass(frozen=True, eq=False)
class Column:
    """One column's posterior, in the column's own units.

    Attributes:
        name: Such as `loss/code`.
        units: Relation to the process's units.
        posterior: The process, in scales.
        spread: Factor on its standard deviations, from residuals that were left out.
    """

    name: str
    units: Units
    posterior: gp.Posterior
    spread: float = 1.0

    @property
    def deviation(self) -> float:
        """Column units per unit of the process's standard deviation."""
        return self.units.scale * self.spread

    @property
    def target(self) -> int:
        """Number of the target rung."""
        return self.posterior.kernel.layout.num_rungs - 1

    def rows(self, encoded: Encoded, rungs: Tensor | int, groups: Tensor | float = gp.NO_TRIAL) -> gp.Prepared:
        """Encode mixtures, rung numbers and trial numbers as this column's process uses them."""
        return self.posterior.kernel.prepare(self.units.rows(encoded, rungs, groups))

    def mean(self, rows: gp.Prepared) -> Tensor:
        """Return (M,) posterior means, column units."""
        return self.mean_from(rows, self.posterior.kernel.matrix(self.posterior.own, rows))

    def mean_from(self, rows: gp.Prepared, covariance: Tensor) -> Tensor:
        """Return `mean` given the (N, M) covariance of the observations with the rows."""
        level = rows.rung @ self.units.offsets
        return self.units.center + self.units.scale * (rows.loss + level + covariance.T @ self.posterior.dual)

    def std(self, rows: gp.Prepared) -> Tensor:
        """Return (M,) posterior standard deviations of the seed average, column units."""
        return self.deviation * self.posterior.variance(rows).sqrt()

    def covariance(self, rows: gp.Prepared) -> Tensor:
        """Return the (M, M) posterior covariance of the seed average, squared column units."""
        return self.deviation**2 * self.posterior.covariance(rows)

    def linked(self, links: Tensor) -> Column:
        """Return the posterior under other links (R-1,) to the target."""
        return replace(self, posterior=self.posterior.with_links(links))

    def believe(self, encoded: Encoded, rungs: Tensor, group: float) -> Column:
        """Condition on runs that are being observed, at their posterior means."""
        return replace(self, posterior=self.posterior.believe(self.units.rows(encoded, rungs, group)))


@dataclass(frozen=True, eq=False)
class Fit:
    """Hyperparameters of one column, and the unit they are in.

    Attributes:
        index: Place among the predictor's columns, or None where the predictor is not used.
        scale: Unit of the process, column units.
        kernel: Hyperparameters; links as the column alone suggests.
        evidences: Per rung but the target, (G,) log evidences of its links.
        left_out: {row: standardized residual of its value given all others}.
    """

    index: int | None
    scale: float
    kernel: gp.Kernel
    evidences: tuple[Array, ...]
    left_out: Mapping[int, float]

    @property
    def spread(self) -> float:
        """Factor on standard deviations that the left-out residuals suggest."""
        total = sum(z**2 for z in self.left_out.values())
        return UNDERSTATED * max(1.0, float(np.sqrt((total + SURE_OF_SPREAD) / (len(self.left_out) + SURE_OF_SPREAD))))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """All columns given a history; each is fitted when it is first asked for.

    Attributes:
        encoder: From mixtures to rows.
        evidence: The rows to learn from.
        pooled: Columns whose links are learned together: the objective's, then others.
        memory: Fits of earlier histories, by all that determines them.
        whole: The objective's own values as one column, whose link caps the columns'; or None.
    """

    encoder: Encoder
    evidence: Evidence
    pooled: tuple[str, ...] = ()
    memory: OrderedDict[str, Fit] = field(default_factory=OrderedDict, repr=False)
    whole: Surrogate | None = None
    _columns: dict[str, Column] = field(default_factory=dict, init=False, repr=False)
    _fits: dict[str, Fit] = field(default_factory=dict, init=False, repr=False)
    _links: list[links.Pooled] = field(default_factory=list, init=False, repr=False)

    def column(self, name: str) -> Column:
        """Return a column's posterior; known to predictor or history or not."""
        if name not in self._columns:
            self._columns[name] = self._learn(name)
        return self._columns[name]

    def with_evidence(self, evidence: Evidence) -> Surrogate:
        """Return the same fits for evidence with equal rows and other pending trials."""
        same = replace(self, evidence=evidence)
        same._columns.update(self._columns)
        same._fits.update(self._fits)
        same._links.extend(self._links)
        return same

    def known_columns(self) -> tuple[str, ...]:
        """Return the columns that the predictor knows or an observation has."""
        observed = dict.fromkeys(name for row in self.evidence.columns for name in row)
        return tuple(dict.fromkeys([*self.encoder.known, *observed]))

    def doubted(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return those of the columns that the predictor knows and that do better without it."""
        return tuple(name for name in names if name in self.encoder.known and self._fit(name).index is None)

    def rung_links(self) -> tuple[links.Link, ...]:
        """Return what is believed of each rung's link to the target, the target left out."""
        return tuple(pooled.typical for pooled in self._pooled_links())

    def alternatives(self, names: Sequence[str]) -> list[tuple[Column, ...]]:
        """Return the columns as they would be under other links, equally probable; none where links hardly matter.

        Rungs move together: all are linked less than believed, or all more.
        """
        strata = [pooled.strata for pooled in self._pooled_links()]
        if not strata or max(float(np.ptp(links, axis=0).max()) for links in strata) < SAME_LINKS:
            return []
        places = [self.pooled.index(name) for name in names]
        return [
            tuple(
                self.column(name).linked(torch.tensor([links[world, place] for links in strata]))
                for name, place in zip(names, places, strict=True)
            )
            for world in range(len(strata[0]))
        ]

    def correlation(self, names: Sequence[str]) -> Array:
        """Return the (J, J) correlation of the columns' errors, from residuals that were left out.

        What a run is unlike its neighbors shows in several columns at once, so that errors
        of a sum of columns do not cancel as independent ones would.
        """
        fits = [self._fit(name).left_out for name in names]
        common = sorted(set.intersection(*(set(fit) for fit in fits)))
        prior = SHARED_ERROR + (1 - SHARED_ERROR) * np.eye(len(names))
        if len(common) < 3:
            return np.asarray(prior)
        residuals = np.array([[fit[row] for row in common] for fit in fits])
        second = residuals @ residuals.T
        own = np.sqrt(np.maximum(second.diagonal(), 1e-12))
        weight = len(common) / (len(common) + SURE_OF_SHARED)
        return np.asarray(weight * second / np.outer(own, own) + (1 - weight) * prior)

    def _pooled_links(self) -> list[links.Pooled]:
        """Return per rung what the pooled columns know of its links; computed once."""
        if not self._links and self.pooled:
            fits = [self._fit(name) for name in self.pooled]
            for rung in range(len(self.evidence.positions) - 1):
                whole = None if self.whole is None else self.whole._fit(self.whole.pooled[0]).evidences[rung]
                self._links.append(links.pool([fit.evidences[rung] for fit in fits], whole))
        return self._links

    def _own_links(self, name: str) -> Tensor:
        if name in self.pooled:
            return torch.tensor([found.means[self.pooled.index(name)] for found in self._pooled_links()])
        fits = [self._fit(other) for other in (*self.pooled, name)]
        rungs = range(len(self.evidence.positions) - 1)
        return torch.tensor([links.pool([fit.evidences[rung] for fit in fits]).means[-1] for rung in rungs])

    def _learn(self, name: str) -> Column:
        """Condition a column on all its rows, with the hyperparameters of its fit."""
        fit = self._fit(name)
        units, rows, values, known = self._data(self._rows_of(name, fit.index), name, fit.index, fit.scale)
        kernel = fit.kernel
        if len(self.evidence.positions) > 1:
            kernel = kernel.with_links(self._own_links(name))
        spread = fit.spread * (1.0 if units.index is None else self._understated(name))
        return Column(name, units, gp.Posterior(kernel, rows, values, known), spread)

    def _understated(self, name: str) -> float:
        """Return the factor on standard deviations that a predictor asks for: what is measured on few tokens errs more."""
        assert self.encoder.predictor is not None
        few = FEWEST_TOKENS / max(1, self.encoder.predictor.num_tokens(name))
        return UNDERSTATED_BY_PREDICTOR * max(1.0, math.sqrt(few))

    def _fit(self, name: str) -> Fit:
        if name not in self._fits:
            self._fits[name] = self._remembered(name)
        return self._fits[name]

    def _remembered(self, name: str) -> Fit:
        """Return hyperparameters from the first rows of the history, fitted once per content."""
        evidence, index = self.evidence, self.encoder.index(name)
        chosen = self._rows_of(name, index)
        chosen = chosen[: refit_size(evidence.rungs[chosen], len(evidence.positions) - 1)]
        every = self._rows_of(name, None)
        every = every[every <= chosen[-1]] if len(chosen) else chosen
        key = fingerprint([name, evidence.positions.tolist(), evidence.plain(every, name)])
        if key not in self.memory:
            self.memory[key] = self._choose(chosen, every, name)
            while len(self.memory) > _REMEMBERED:
                self.memory.popitem(last=False)
        return self.memory[key]

    def _choose(self, chosen: Array, every: Array, name: str) -> Fit:
        """Fit with the predictor as prior mean, or without it where that is clearly better.

        Args:
            chosen: Rows to fit to, without those of experts if the predictor knows the column.
            every: The same rows with those of experts.
            name: The column.
        """
        evidence, index = self.evidence, self.encoder.index(name)
        if index is None:
            return self._fit_to(chosen, name, None)
        agreement, num = self._agreement(chosen, name), _most_at_one_rung(evidence, chosen)
        if doubt.is_misleading(agreement, num):
            return self._fit_to(every, name, None)
        fit = self._fit_to(chosen, name, index)
        if agreement >= doubt.SOUND or len(np.unique(evidence.mixtures[chosen])) < doubt.FEWEST_TO_COMPARE:
            return fit
        rival = self._fit_to(every, name, None)
        return rival if doubt.is_worse(self._densities(fit, chosen, name), self._densities(rival, every, name)) else fit

    def _agreement(self, chosen: Array, name: str) -> float:
        """Return the correlation of the predictor with the values of some rows."""
        evidence, index = self.evidence, self.encoder.index(name)
        with torch.no_grad():
            predicted = self.encoder.encode(torch.tensor(evidence.weights[chosen])).predicted[:, index].numpy()
        values = np.array([evidence.columns[i][name] for i in chosen])
        return doubt.correlation(values, predicted, evidence.rungs[chosen])

    def _densities(self, fit: Fit, chosen: Array, name: str) -> dict[int, float]:
        """Return {mixture: log density of its values given all others} of the mixtures that no expert has."""
        evidence, chosen = self.evidence, thinned(self.evidence.rungs, chosen)
        _, rows, values, known = self._data(chosen, name, fit.index, fit.scale)
        found = doubt.log_densities(gp.Posterior(fit.kernel, rows, values, known), evidence.mixtures[chosen], fit.scale)
        experts = set(evidence.mixtures[evidence.expert].tolist())
        return {mixture: density for mixture, density in found.items() if mixture not in experts}

    def _fit_to(self, chosen: Array, name: str, index: int | None) -> Fit:
        chosen = thinned(self.evidence.rungs, chosen)
        values = np.array([self.evidence.columns[i][name] for i in chosen])
        scale = _own_scale(values, self.evidence.rungs[chosen])
        if index is not None:
            scale = float(self.encoder.scales[index])
        layout = gp.Layout(
            len(self.encoder.mean),
            torch.tensor(self.evidence.positions),
            RESIDUAL_ALONE if index is None else RESIDUAL_WITH_PREDICTOR,
        )
        _, rows, residuals, known = self._data(chosen, name, index, scale)
        kernel = gp.fit(rows, residuals, known, layout)
        posterior = gp.Posterior(kernel, rows, residuals, known)
        evidences = tuple(links.measure(posterior, rung) for rung in range(len(self.evidence.positions) - 1))
        left_out = dict(zip(chosen.tolist(), posterior.left_out().tolist(), strict=True))
        return Fit(index, scale, kernel, evidences, left_out)

    def _rows_of(self, name: str, index: int | None) -> Array:
        # The predictor is exact at the experts by construction: they would teach it nothing but trust.
        return self.evidence.select(name, experts=index is None)

    def _data(self, chosen: Array, name: str, index: int | None, scale: float) -> tuple[Units, Tensor, Tensor, Tensor]:
        """Return units, and encoded rows, values less the prior mean and known noise variances in them."""
        evidence, rungs = self.evidence, self.evidence.rungs[chosen]
        values = np.array([evidence.columns[i][name] for i in chosen])
        known = np.array([evidence.noise[i].get(name, 0.0) for i in chosen])
        center = 0.0 if index is None else float(self.encoder.centers[index])
        units = Units(index, center, scale, torch.zeros(len(self.evidence.positions), dtype=torch.float64))
        encoded = self.encoder.encode(torch.tensor(evidence.weights[chosen]))
        rows = units.rows(encoded, torch.tensor(rungs), torch.tensor(evidence.groups[chosen]))
        residuals = (torch.tensor(values) - center) / scale - rows[:, -3]
        units = replace(units, offsets=_levels(residuals, rungs, len(self.evidence.positions)))
        return units, rows, residuals - units.offsets[torch.tensor(rungs)], torch.tensor((known / scale) ** 2)


def refit_size(rungs: Array, target: int) -> int:
    """Return how many of the (N,) rows, in order, the hyperparameters are fitted to.

    A fit is due for each of the first rows, then whenever rows, or target rows, have
    grown by a fifth since the last one.
    """
    last = last_targets = targets = 0
    for size, rung in enumerate(rungs, start=1):
        targets += int(rung == target)
        grown = size >= REFIT_GROWTH * last or (targets > last_targets and targets >= REFIT_GROWTH * last_targets)
        if size <= REFIT_ALWAYS or grown:
            last, last_targets = size, targets
    return last


def _most_at_one_rung(evidence: Evidence, chosen: Array) -> int:
    """Return the number of mixtures at the rung that has most of them."""
    pairs = np.unique(np.stack([evidence.rungs[chosen], evidence.mixtures[chosen]]), axis=1)
    return int(np.bincount(pairs[0]).max(initial=0))


def thinned(rungs: Array, chosen: Array) -> Array:
    """Return at most 256 of the chosen rows: evenly spaced ones of each rung, dear rungs first."""
    if len(chosen) <= MOST_TO_FIT:
        return chosen
    left, kept = MOST_TO_FIT, []
    present = sorted(set(rungs[chosen].tolist()), reverse=True)
    sizes = {rung: int((rungs[chosen] == rung).sum()) for rung in present}
    for place, rung in enumerate(present):
        own = chosen[rungs[chosen] == rung]
        others = sum(sizes[other] for other in present[place + 1 :])
        share = max(left // 2, left // (len(present) - place), left - others)
        picked = own[np.unique(np.linspace(0, len(own) - 1, min(share, len(own))).round().astype(int))]
        kept.append(picked)
        left -= len(picked)
    return np.sort(np.concatenate(kept))


def _levels(residuals: Tensor, rungs: Array, num: int) -> Tensor:
    """Return (R,) mean residuals per rung; a rung without rows has that of the next dearer, else of the dearest."""
    where, levels = torch.tensor(rungs), torch.zeros(num, dtype=torch.float64)
    known = sorted(set(rungs.tolist()))
    for rung in range(num):
        source = next((r for r in known if r >= rung), known[-1] if known else None)
        if source is not None:
            levels[rung] = residuals[where == source].mean()
    return levels


def _full(value: Tensor | float, num: int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).expand(num)


def _own_scale(values: Array, rungs: Array) -> float:
    """Return the pooled spread of values within rungs, or the default for too few of them."""
    deviations = [values[rungs == r] - values[rungs == r].mean() for r in np.unique(rungs)]
    freedom = len(values) - len(deviations)
    if freedom < 2:
        return DEFAULT_SCALE
    spread = float(np.sqrt(sum(float(d @ d) for d in deviations) / freedom))
    if not np.isfinite(spread):
        raise ConfigError(f"values up to {np.abs(values).max():.3g} are too large to be losses or scores; correct them")
    return max(1e-3, spread)
