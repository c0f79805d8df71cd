"""The objective: the one number a study minimizes, as an expression over columns.

An expression is one column (`loss/code`), a list or pattern under mean or max
(`mean(loss/*)`, `max(loss/a, loss/b)`), or a mapping of columns to weights. Losses
enter as they are, `score/<task>` columns negated. Columns are nats per token; the
unit `bits_per_byte` rescales each loss by its set's tokens / bytes / ln 2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from .errors import ConfigError, did_you_mean
from .mixture import Array, check_name

UNITS = ("nats_per_token", "bits_per_byte")
_CALL = re.compile(r"(mean|max)\((.*)\)")


@dataclass(frozen=True)
class EvalSet:
    """A fixed text whose loss is measured, or a multiple-choice task.

    Attributes:
        name: Unique within the study.
        num_tokens: Tokens that its loss is the mean over; of a task those of the right options.
        num_bytes: UTF-8 bytes of these tokens.
        kind: `text` or `multiple_choice`.
        fingerprint: Content hash of text, tokenizer and selection.
        num_questions: Of a multiple-choice task.
        chance: Accuracy of guessing at the task.
    """

    name: str
    num_tokens: int
    num_bytes: int
    kind: str = "text"
    fingerprint: str = ""
    num_questions: int = 0
    chance: float = 0.0

    def __post_init__(self) -> None:
        check_name(self.name, "evaluation set")

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns in the runs table: `loss/<name>`, and of a task also `score/<name>`."""
        return (f"loss/{self.name}", f"score/{self.name}") if self.kind != "text" else (f"loss/{self.name}",)

    @property
    def bits_per_byte(self) -> float:
        """Factor from nats per token to bits per byte."""
        return self.num_tokens / self.num_bytes / math.log(2)


@dataclass(frozen=True, eq=False)
class Objective:
    """A mean (weighted sum) or a maximum of columns, to be minimized.

    Attributes:
        columns: J column names.
        weights: (J,) factors, units and signs included; score columns have negative ones.
        reduction: `sum` or `max` over the weighted columns.
        unit: `nats_per_token` or `bits_per_byte`.
        expression: As the user wrote it.
    """

    columns: tuple[str, ...]
    weights: Array
    reduction: str
    unit: str
    expression: str

    @classmethod
    def parse(
        cls,
        expression: str | Mapping[str, float],
        available: Sequence[str],
        *,
        unit: str = "nats_per_token",
        eval_sets: Iterable[EvalSet] = (),
    ) -> Objective:
        """Resolve an expression against the columns of a study or table.

        Args:
            expression: Text or mapping, as in a study file.
            available: Column names such as `loss/code` and `score/quiz`.
            unit: Unit of the value.
            eval_sets: Token and byte counts, needed for bits per byte.

        Raises:
            ConfigError: If the expression is malformed or names unknown columns.
        """
        if unit not in UNITS:
            raise ConfigError(f"objective.unit: expected one of {', '.join(UNITS)}, got {unit!r}")
        if isinstance(expression, Mapping):
            terms, reduction = [(name, float(weight)) for name, weight in expression.items()], "sum"
        else:
            terms, reduction = _parse_text(expression, available)
        factors = {f"loss/{s.name}": s.bits_per_byte for s in eval_sets} if unit == "bits_per_byte" else {}
        columns, weights = [], []
        for name, weight in terms:
            _check_column(name, available, unit, factors)
            columns.append(name)
            weights.append(weight * (-1.0 if name.startswith("score/") else factors.get(name, 1.0)))
        if len(set(columns)) != len(columns):
            raise ConfigError(f"objective.expression: a column is named twice in {expression!r}; name each once")
        if not columns or not np.all(np.isfinite(weights)) or not np.any(weights):
            raise ConfigError(
                f"objective.expression: {expression!r} selects no column with a finite weight; name at least one"
            )
        return cls(tuple(columns), np.asarray(weights, dtype=np.float64), reduction, unit, str(expression))

    def value(self, columns: Mapping[str, Array | float]) -> Array:
        """Return the objective of columns given as numbers or equally shaped arrays."""
        terms = np.stack(
            [w * np.asarray(columns[name]) for name, w in zip(self.columns, self.weights, strict=True)], axis=-1
        )
        return np.asarray(terms.sum(-1) if self.reduction == "sum" else terms.max(-1), dtype=np.float64)

    def gradient(self, columns: Mapping[str, Array | float]) -> Array:
        """Return the (sub)gradient with respect to the columns, shape (..., J)."""
        terms = np.stack(
            [w * np.asarray(columns[name]) for name, w in zip(self.columns, self.weights, strict=True)], axis=-1
        )
        if self.reduction == "sum":
            return np.broadcast_to(self.weights, terms.shape).copy()
        return np.where(np.arange(len(self.columns)) == terms.argmax(-1, keepdims=True), self.weights, 0.0)


def _parse_text(text: str, available: Sequence[str]) -> tuple[list[tuple[str, float]], str]:
    call = _CALL.fullmatch(text.strip())
    if not call:
        return [(text.strip(), 1.0)], "sum"
    names: list[str] = []
    for pattern in filter(None, (part.strip() for part in call[2].split(","))):
        matches = [name for name in available if fnmatchcase(name, pattern)]
        names += matches or [pattern]
    unique = list(dict.fromkeys(names))
    if call[1] == "max":
        return [(name, 1.0) for name in unique], "max"
    return [(name, 1.0 / len(unique)) for name in unique], "sum"


def _check_column(name: str, available: Sequence[str], unit: str, factors: Mapping[str, float]) -> None:
    if name not in available:
        raise ConfigError(
            f"objective.expression: unknown column {name!r}{did_you_mean(name, available)}; available are {', '.join(available)}. "
            "Write one column, mean(...) or max(...) of columns or patterns, or a mapping of columns to weights"
        )
    if unit == "bits_per_byte" and name.startswith("loss/") and name not in factors:
        raise ConfigError(f"objective.unit: bits_per_byte needs the bytes of {name}; use unit: nats_per_token")
