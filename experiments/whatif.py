"""What a study's own surrogate says of other mixtures: curves, a triangle, effects.

Asks through the optimizer's protocol only, so any optimizer will do. Everything is at the
target rung, and losses are in the objective's unit. Runs that were left out are in
`held_out.py`.

    K domains, M mixtures, G points of a curve
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixopt.errors import MixoptError
from mixopt.mixture import Array, Mixture
from mixopt.observation import History, Role
from mixopt.proposal import Prediction
from mixopt.protocols import Optimizer
from mixopt.study import Study

from .comparison import compare, unit_factor
from .drawing import spaced
from .held_out import LeftOut, only, predict_left_out

logger = logging.getLogger(__name__)

NORMAL_90 = 1.645  # standard deviations on either side of a 90% interval
STEP = 0.05  # share of the tokens that an effect is about
_POINTS = 25  # of a curve
_SIDE = 20  # small triangles along a side
_MOST_CURVES = 12
_MOST_VALUES = 3000  # observations x columns that a fit is asked to look at; more take minutes
_MOST_TRIALS = 150  # kept of larger studies


@dataclass(frozen=True, eq=False)
class Curve:
    """The objective as one weight moves and the others keep their proportions.

    Attributes:
        domain: Whose weight.
        weight: Its weight in the center.
        shares: (G,) weights.
        mean: (G,) predicted objectives.
        std: (G,) their standard deviations.
        near: Smallest and largest weight at which the objective is predicted at most one
            standard deviation of the center above the center.
    """

    domain: str
    weight: float
    shares: Array
    mean: Array
    std: Array
    near: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Triangle:
    """The objective over three shares that sum to 1.

    Attributes:
        corners: Two domains and the third, or the words for all others in the center's proportions.
        places: (M, 3) shares of the corners.
        cells: Triples of places, the small triangles.
        mean: (M,) predicted objectives.
        center: (3,) shares of the center.
    """

    corners: tuple[str, str, str]
    places: Array
    cells: tuple[tuple[int, int, int], ...]
    mean: Array
    center: Array


@dataclass(frozen=True, eq=False)
class WhatIf:
    """A study, its optimizer, and the mixture around which is looked.

    Attributes:
        study: The study.
        optimizer: What answers.
        center: The recommended mixture, else the best one measured.
    """

    study: Study
    optimizer: Optimizer
    center: Mixture

    @classmethod
    def of(cls, study: Study, optimizer: Optimizer | None) -> WhatIf | str:
        """Return it, or in words why nothing can be asked."""
        if optimizer is None:
            return "the study's surrogate could not be opened"
        best = study.best()
        if study.recommendation is None and best is None:
            return "no mixture is recommended and none is measured at the target rung yet"
        center = study.recommendation.mixture if study.recommendation else best[0].mixture if best else None
        assert center is not None
        known = cls(study, optimizer, center.over(study.header.domain_names))
        try:
            std = known.believed[1]
        except MixoptError as error:
            logger.warning("surrogate cannot answer reason=%s", error)
            return f"the optimizer cannot predict: {error}"
        if not np.isfinite(std).all() or std.max() <= 0:
            return f"{optimizer.name} says nothing of mixtures it has not seen"
        return known

    # --- what was asked, all at once: every question costs a fit ---------------

    @cached_property
    def history(self) -> History:
        """What is known, thinned where a fit would take minutes: experts, the best runs and evenly spaced others."""
        history, names = self.study.history(), self.study.objective.columns
        whole = history.of(Role.SEARCH)
        if sum(len(o.losses) + len(o.scores) for o in history.observations) <= _MOST_VALUES:
            return history
        measured = [o for o in whole.observations if o.fidelity == self.study.header.ladder.target.name]
        best = sorted(measured, key=lambda o: _last(self.study.value(o)))[: _MOST_TRIALS // 2]
        kept = {o.trial for o in best} | {t.id for t in spaced(whole.trials, _MOST_TRIALS // 2)}
        kept |= {t.id for t in history.trials if t.role is Role.EXPERT}
        trials = tuple(t for t in history.trials if t.id in kept)
        return History(trials, tuple(only(o, names) for o in history.observations if o.trial in kept))

    @property
    def thinned(self) -> str:
        """In words what was left out of a large study; empty otherwise."""
        whole, kept = self.study.history(), self.history
        if len(kept.observations) == len(whole.observations):
            return ""
        num = len(kept.of(Role.SEARCH).trials)
        return f" The surrogate is fitted to {num} of {len(whole.of(Role.SEARCH).trials)} search trials here."

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """One curve per domain, those with most weight first; at most twelve."""
        places, curves = self._answers["curves"], []
        mean, std = self.believed
        limit = mean[0] + std[0]
        for i, domain in enumerate(self._curved):
            part = slice(places.start + i * _POINTS, places.start + (i + 1) * _POINTS)
            weight, shares = self.center.as_dict()[domain], self._shares(domain)
            near = _around(shares, mean[part] <= limit, weight)
            curves.append(Curve(domain, weight, shares, mean[part], std[part], near))
        return tuple(curves)

    @cached_property
    def triangle(self) -> Triangle | None:
        """The plane of the two weightiest domains and all others; None below three domains."""
        if len(self.center.domains) < 3:
            return None
        corners, shares = self._corners
        places, cells = _lattice(_SIDE)
        return Triangle(corners, places, cells, self.believed[0][self._answers["triangle"]], shares)

    @cached_property
    def effects(self) -> tuple[tuple[str, ...], tuple[str, ...], Array]:
        """Domains, columns and (K, J) change of a column when a domain gains `STEP` of the tokens.

        The other domains give in proportion; in the objective's unit.
        """
        columns = self._columns
        table = np.stack([self._believed.mean[c] * unit_factor(self.study, c) for c in columns], axis=-1)
        part = self._answers["effects"]
        return self.center.domains, columns, np.asarray(table[part] - table[0])

    @property
    def believed(self) -> tuple[Array, Array]:
        """Means and standard deviations of the objective of every mixture asked about; the center first."""
        return np.asarray(self._believed.mean["objective"]), np.asarray(self._believed.std["objective"])

    @cached_property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Search runs at the target, each predicted without any run of its mixture; in ledger order."""
        return predict_left_out(self.study, self.optimizer, self.history)

    @cached_property
    def noise(self) -> tuple[float, int]:
        """Standard deviation of one run of a mixture at the target, and its degrees of freedom; 0 and 0 if unknown."""
        for c in compare(self.study):
            if c.column == "objective" and c.standard_error is not None:
                return c.standard_error * math.sqrt(c.num_pairs / 2), c.freedom
        return 0.0, 0

    @cached_property
    def _answers(self) -> dict[str, slice]:
        sizes = {
            "center": 1, "curves": _POINTS * len(self._curved), "effects": len(self.center.domains),
            "triangle": len(_lattice(_SIDE)[0]) if len(self.center.domains) > 2 else 0,
        }  # fmt: skip
        stops = np.cumsum(list(sizes.values()))
        return {
            name: slice(int(stop - size), int(stop)) for (name, size), stop in zip(sizes.items(), stops, strict=True)
        }

    @cached_property
    def _believed(self) -> Prediction:
        weights, moved = self.center.as_dict(), self._moved
        asked = [self.center.weights]
        asked += [moved(domain, share) for domain in self._curved for share in self._shares(domain)]
        asked += [moved(name, weights[name] + STEP * (1 - weights[name])) for name in self.center.domains]
        if len(self.center.domains) > 2:
            asked += list(self._on_triangle(_lattice(_SIDE)[0]))
        mixtures = [Mixture.normalized(self.center.domains, row) for row in asked]
        return self.optimizer.predict(self.history, mixtures, fidelity=self.study.header.ladder.target.name)

    @property
    def _columns(self) -> tuple[str, ...]:
        """The study's columns that are predicted, the objective last."""
        return (*(c for c in self.study.columns if c in self._believed.mean), "objective")

    # --- mixtures around the center ---------------------------------------------

    @cached_property
    def _ranked(self) -> tuple[str, ...]:
        weights = self.center.as_dict()
        return tuple(sorted(weights, key=lambda name: -weights[name]))

    @property
    def _curved(self) -> tuple[str, ...]:
        return self._ranked[:_MOST_CURVES] if len(self._ranked) > 1 else ()

    def _shares(self, domain: str) -> Array:
        """Return the (G,) weights of a curve, the center's among them."""
        weight = self.center.as_dict()[domain]
        ends = max(0.0, weight - 0.3), min(1.0, max(2 * weight, weight + 0.2))
        num = min(_POINTS - 2, max(1, round((_POINTS - 1) * (weight - ends[0]) / (ends[1] - ends[0]))))
        return np.concatenate(
            [np.linspace(ends[0], weight, num, endpoint=False), np.linspace(weight, ends[1], _POINTS - num)]
        )

    def _moved(self, domain: str, share: float) -> Array:
        """Return (K,) weights with one share and the others in the center's proportions."""
        others = self.center.weights.copy()
        place = self.center.domains.index(domain)
        others[place] = 0.0
        if others.sum() <= 0:
            others = np.where(np.arange(len(others)) == place, 0.0, 1.0)
        moved = others / (others.sum() or 1.0) * (1 - share)  # a single domain has no others
        moved[place] = share
        return np.asarray(moved)

    @property
    def _corners(self) -> tuple[tuple[str, str, str], Array]:
        names, weights = self._ranked, self.center.as_dict()
        first, second = weights[names[0]], weights[names[1]]
        third = names[2] if len(names) == 3 else "the others"
        return (names[0], names[1], third), np.array([first, second, max(0.0, 1 - first - second)])

    def _on_triangle(self, places: Array) -> Array:
        """Return the (M, K) weights of places on the triangle."""
        domains, (first, second) = self.center.domains, self._ranked[:2]
        rest = np.array([0.0 if name in (first, second) else w for name, w in self.center.as_dict().items()])
        if rest.sum() <= 0:
            rest = np.array([0.0 if name in (first, second) else 1.0 for name in domains])
        corners = np.stack(
            [np.eye(len(domains))[domains.index(name)] for name in (first, second)] + [rest / rest.sum()]
        )
        return np.asarray(places @ corners)


def _lattice(side: int) -> tuple[Array, tuple[tuple[int, int, int], ...]]:
    """Return the places of a triangular grid as shares (M, 3), and its cells as triples of places."""
    points = [(i, j) for i in range(side + 1) for j in range(side + 1 - i)]
    number = {point: place for place, point in enumerate(points)}
    cells = []
    for i, j in points:
        if i + j < side:
            cells.append((number[i, j], number[i + 1, j], number[i, j + 1]))
        if i + j < side - 1:
            cells.append((number[i + 1, j], number[i + 1, j + 1], number[i, j + 1]))
    return np.array([(i / side, j / side, (side - i - j) / side) for i, j in points]), tuple(cells)


def _around(shares: Array, good: Array, weight: float) -> tuple[float, float]:
    """Return the ends of the connected stretch of good shares that holds the weight."""
    place = int(np.abs(shares - weight).argmin())
    low = high = place
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(shares) - 1 and good[high + 1]:
        high += 1
    return float(shares[low]), float(shares[high])


def _last(value: float | None) -> float:
    return math.inf if value is None else value
