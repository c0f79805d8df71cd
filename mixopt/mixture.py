"""Domains and mixtures: points on the simplex, validated once at construction.

Weights are shares of training *tokens*. The order of domains is the study's order,
everywhere. K is the number of domains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MixtureError, did_you_mean

Array = NDArray[np.float64]

SUM_TOLERANCE = 1e-9
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LONGEST_NAME = 100  # characters; names become parts of file names, which end at 255 bytes


def readonly(values: Any) -> Array:
    """Return `values` as a read-only float64 array (a copy)."""
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array


def check_name(name: str, kind: str) -> str:
    """Return `name` if it can be a column, tag and file name; else raise MixtureError."""
    if len(name) > _LONGEST_NAME:
        raise MixtureError(
            f"{kind} name {name[:20]!r}... must have at most {_LONGEST_NAME} characters, got {len(name)}; shorten it"
        )
    if not _NAME.fullmatch(name):
        raise MixtureError(
            f"{kind} name {name!r} must start with a letter or digit and hold only letters, digits, '_', '.' and '-'; rename it"
        )
    return name


@dataclass(frozen=True)
class Domain:
    """One named part of the training data.

    Attributes:
        name: Unique within a study.
        num_tokens: Unique training tokens, after tokenization.
        num_docs: Training documents.
        num_bytes: UTF-8 bytes of the training documents.
        fingerprint: Content hash of text and tokenizer; equal data, equal value.
    """

    name: str
    num_tokens: int
    num_docs: int
    num_bytes: int
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "domain")


@dataclass(frozen=True, eq=False)
class Mixture:
    """Mixture weights over domains: non-negative, sum 1 within 1e-9.

    Attributes:
        domains: K unique names.
        weights: (K,) shares of tokens, read-only float64.

    Raises:
        MixtureError: If the names repeat or the weights leave the simplex.
    """

    domains: tuple[str, ...]
    weights: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        object.__setattr__(self, "weights", readonly(self.weights))
        if len(set(self.domains)) != len(self.domains):
            raise MixtureError(f"domain names must be unique, got {list(self.domains)}; rename one")
        if self.weights.shape != (len(self.domains),):
            raise MixtureError(
                f"expected {len(self.domains)} weights, one per domain, got an array of shape {self.weights.shape}"
            )
        if not np.all(np.isfinite(self.weights)) or np.any(self.weights < 0):
            raise MixtureError(f"weights must be finite and non-negative, got {self.as_dict()}; correct or drop them")
        total = float(self.weights.sum())
        if abs(total - 1) > SUM_TOLERANCE:
            raise MixtureError(
                f"weights must sum to 1 (tolerance {SUM_TOLERANCE:g}), got {total:.10g}; correct them, or use Mixture.normalized(...) if intended"
            )

    @classmethod
    def normalized(cls, domains: Sequence[str], weights: Any) -> Mixture:
        """Build a mixture from non-negative numbers by dividing by their sum."""
        values = np.asarray(weights, dtype=np.float64)
        total = float(values.sum())
        if not np.isfinite(total) or total <= 0:
            raise MixtureError(
                f"weights to normalize must have a positive sum, got {total:g}; give at least one positive weight"
            )
        return cls(tuple(domains), values / total)

    @classmethod
    def uniform(cls, domains: Sequence[str]) -> Mixture:
        """Give every domain the same share of tokens."""
        return cls.normalized(domains, np.ones(len(domains)))

    @classmethod
    def natural(cls, domains: Sequence[Domain]) -> Mixture:
        """Give every domain its share of all available tokens."""
        return cls.normalized([d.name for d in domains], [d.num_tokens for d in domains])

    @classmethod
    def vertex(cls, domains: Sequence[str], name: str) -> Mixture:
        """Put all weight on one domain: what a data expert is trained on."""
        return cls.from_mapping(domains, {name: 1.0})

    @classmethod
    def from_mapping(cls, domains: Sequence[str], weights: Mapping[str, float]) -> Mixture:
        """Build a mixture from {domain: weight}; missing domains get weight 0."""
        unknown = [name for name in weights if name not in domains]
        if unknown:
            raise MixtureError(
                f"unknown domain {unknown[0]!r}{did_you_mean(unknown[0], domains)}; the study's domains are {', '.join(domains)}"
            )
        return cls(tuple(domains), np.array([float(weights.get(name, 0.0)) for name in domains]))

    @classmethod
    def parse(cls, text: str, domains: Sequence[str]) -> Mixture:
        """Read `web=0.6,code=0.4` as typed on a command line."""
        weights: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, value = part.partition("=")
            name = name.strip()
            try:
                number = float(value)
            except ValueError:
                number = float("nan")
            if not equals or not np.isfinite(number):
                raise MixtureError(
                    f"expected DOMAIN=WEIGHT with a number, got {part!r}; write for example web=0.6,code=0.4"
                )
            if name in weights:
                raise MixtureError(f"domain {name!r} is given twice in {text!r}; name it once")
            weights[name] = number
        return cls.from_mapping(domains, weights)

    def as_dict(self) -> dict[str, float]:
        """Return {domain: weight} in the study's order."""
        return dict(zip(self.domains, map(float, self.weights), strict=True))

    def over(self, domains: Sequence[str]) -> Mixture:
        """Express this mixture over another list of domains.

        Raises:
            MixtureError: If a domain with positive weight is not in the list.
        """
        if tuple(domains) == self.domains:
            return self
        return Mixture.from_mapping(domains, {k: v for k, v in self.as_dict().items() if v > 0 or k in domains})

    def distance(self, other: Mixture) -> float:
        """Return the total variation distance, in [0, 1]."""
        if self.domains != other.domains:
            raise MixtureError("distance needs mixtures over the same domains in the same order; use over(...) first")
        return 0.5 * float(np.abs(self.weights - other.weights).sum())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mixture)
            and self.domains == other.domains
            and bool(np.array_equal(self.weights, other.weights))
        )

    def __hash__(self) -> int:
        return hash((self.domains, self.weights.tobytes()))
