"""What must hold of a runs table, each with one clear message that names columns and rows.

Used once, when a table is made; nothing is changed here. N rows, K domains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .mixture import SUM_TOLERANCE, Array
from .sheet import listed

if TYPE_CHECKING:
    from .runs_table import RunsTable

KINDS = ("loss/", "score/")


def check(runs: Sequence[str], good: NDArray[np.bool_], what: str, remedy: str) -> None:
    """Raise ConfigError `<what> <rows>; <remedy>` if a row of (N,) booleans is false."""
    bad = np.flatnonzero(~good).tolist()
    if bad:
        raise ConfigError(f"{what} {listed(f'row {row + 1} ({runs[row]})' for row in bad)}; {remedy}")


def check_names(table: RunsTable) -> None:
    """Raise ConfigError unless every run, domain, rung and column has a usable name."""
    if not table.runs or not table.domains:
        raise ConfigError("a runs table needs at least one run and one domain, got none; add rows and weight/ columns")
    odd = [name for name in table.columns if not name.startswith(KINDS)]
    if odd:
        raise ConfigError(f"columns must be called loss/<name> or score/<name>, got {listed(odd)}; rename them")
    lost = [name for name in table.noise if name not in table.columns]
    if lost:
        raise ConfigError(f"noise must be that of a column of the table, got {listed(lost)}; add or drop it")
    kinds = {"run": table.runs, "fidelity": table.fidelities, "domain": table.domains}
    kinds["column"] = tuple(name.partition("/")[2] for name in table.columns)
    for kind, names in kinds.items():
        wrong = [repr(n) for n in names if not (n and n.isprintable() and n == n.strip())]
        if wrong:
            raise ConfigError(
                f"every {kind} needs a name of printable text without spaces around it, got {listed(wrong)}; fill it in"
            )
    for kind in ("run", "domain"):
        twice = [name for name, count in Counter(kinds[kind]).items() if count > 1]
        if twice:
            raise ConfigError(f"every {kind} must be there once, twice or more is {listed(twice)}; rename or drop some")


def check_lengths(table: RunsTable) -> None:
    """Raise ConfigError unless all columns have one value per run."""
    num = len(table.runs)
    lists: dict[str, Sized | None] = {
        "fidelities": table.fidelities,
        "costs": table.costs,
        "seeds": table.seeds or None,
        "parents": table.parents or None,
        "params": table.params,
        "tokens": table.tokens,
        **table.columns,
        **{f"noise/{name}": values for name, values in table.noise.items()},
    }
    for name, values in lists.items():
        if values is not None and (len(values) != num or getattr(values, "ndim", 1) != 1):
            raise ConfigError(
                f"a table of {num} runs needs one list of {num} {name}, got another shape; pass one per run"
            )
    if table.weights.shape != (num, len(table.domains)):
        raise ConfigError(
            f"expected weights of shape {(num, len(table.domains))}, runs by domains, got {table.weights.shape}; pass one "
            "row per run"
        )


def check_not_negative(domains: Sequence[str], runs: Sequence[str], weights: Array) -> None:
    """Raise ConfigError if one of (N, K) weights is negative, infinite or missing."""
    for name, values in zip(domains, weights.T, strict=True):
        good = np.isfinite(values) & (values >= 0)
        check(runs, good, f"weight/{name} must be a number from 0 to 1, not so in", "correct it, or drop these rows")


def check_weights(domains: Sequence[str], runs: Sequence[str], weights: Array) -> None:
    """Raise ConfigError unless every row of (N, K) weights is on the simplex."""
    check_not_negative(domains, runs, weights)
    good = np.abs(weights.sum(-1) - 1) <= SUM_TOLERANCE
    check(runs, good, f"weights must sum to 1 (tolerance {SUM_TOLERANCE:g}), not so in", "use normalized(...)")


def check_values(table: RunsTable) -> None:
    """Raise ConfigError unless costs, columns, noise, sizes and seeds are possible numbers."""
    runs, costs = table.runs, table.costs
    check(runs, np.isfinite(costs) & (costs > 0), "cost must be positive, not so in", "fill it in, or drop the column")
    for name, values in table.columns.items():
        check(runs, ~np.isinf(values), f"{name} must be finite, or empty for a failed run; not so in", "empty the cell")
    for name, values in table.noise.items():
        good = np.isnan(values) | (np.isfinite(values) & (values >= 0))
        check(runs, good, f"noise/{name} must be a standard deviation, not so in", "correct it or leave it empty")
    for name, sizes in (("params", table.params), ("tokens", table.tokens)):
        if sizes is not None:
            good = np.isnan(sizes) | (np.isfinite(sizes) & (sizes > 0))
            check(runs, good, f"{name} must be positive, not so in", "correct it or leave it empty")
    small = np.array([seed is None or -(2**63) <= seed < 2**63 for seed in table.seeds], dtype=np.bool_)
    check(runs, small, "seed must fit into 64 bits, not so in", "choose a smaller one")


def check_parents(table: RunsTable) -> None:
    """Raise ConfigError unless every parent is a run of the table."""
    known = possible_parents(table.runs)
    good = np.array([parent is None or parent in known for parent in table.parents], dtype=np.bool_)
    check(table.runs, good, "parent must be a run of the table, not so in", "add that run, or empty the cell")


def possible_parents(runs: Sequence[str]) -> set[str]:
    """Return what a parent may be called: a run, or the trial of a run `<trial>@<rung>`."""
    return set(runs) | {run.rpartition("@")[0] for run in runs if "@" in run}
