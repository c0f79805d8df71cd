"""Runs tables and lists of mixtures as CSV or parquet files.

Reading says in the table's notes what it changed or ignored. What a table is and must
fulfil is in `runs_table.py`, files of other programs in `layouts.py`. N rows, K domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .errors import ConfigError
from .mixture import SUM_TOLERANCE, Array, Mixture
from .runs_checks import KINDS, check, check_not_negative
from .runs_table import RunsTable, concat
from .sheet import Sheet, listed, located, read_sheet, write_sheet

__all__ = ["RunsTable", "concat", "normalized", "read_mixtures", "read_runs", "write_runs"]

DEFAULT_FIDELITY = "target"
NORMALIZED_WITHIN = 0.01  # published tables round weights: RegMix' rows sum to 0.996-1.003 (METHODS 10.1)

_KNOWN = ("run", "fidelity", "seed", "parent", "params", "tokens", "cost", "reason", "candidate")
_PREFIXES = ("weight/", *KINDS, "noise/")


def read_runs(path: Path | str, *, measured: bool = True) -> RunsTable:
    """Read a runs table from CSV or parquet; what was changed or ignored is in its notes.

    A missing `fidelity` means one rung called `target`. A missing `cost` is params x
    tokens where every row has both, otherwise 1. Weights that sum to 1 within 0.01 are
    normalized, others refused.

    Args:
        path: The file.
        measured: Whether it must have a `loss/` or `score/` column; a list of candidates has none.

    Raises:
        ConfigError: If it is no such table; the message names file, column and rows.
    """
    path = Path(path)
    sheet = read_sheet(path)
    with located(path):
        _check_headers(sheet, measured=measured)
        return _table(sheet)


def read_mixtures(
    path: Path | str, domains: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Mixture, ...], tuple[str, ...]]:
    """Read mixtures from the columns `run` and `weight/<domain>` of a CSV or parquet file; others are not looked at.

    Args:
        path: The file.
        domains: K names, in the order wanted; one without a column has weight 0.

    Returns:
        Ids, mixtures over `domains`, and notes.

    Raises:
        ConfigError: If a column is missing or wrong, or a domain that is not in `domains` has weight.
    """
    path = Path(path)
    sheet = read_sheet(path)
    with located(path):
        _check_headers(sheet, measured=False)
        found, runs = _after("weight/", sheet), sheet.texts("run")
        weights, notes = normalized(found, runs, stacked(sheet, [f"weight/{name}" for name in found]))
        for name in (name for name in found if name not in domains):
            what = f"weight/{name} must be 0, the runs know only the domains {listed(domains)}; not so in"
            check(runs, weights[:, found.index(name)] == 0, what, "drop these rows")
        table = RunsTable(found, runs, (DEFAULT_FIDELITY,) * len(runs), weights, {}, np.ones(len(runs)))
        return runs, tuple(Mixture(found, row).over(domains) for row in table.weights), notes


def write_runs(table: RunsTable, path: Path | str) -> None:
    """Write a runs table as CSV or parquet; reading it gives every value back to the last bit, notes aside.

    Raises:
        ConfigError: If the suffix is neither .csv nor .parquet.
    """
    optional = {"seed": table.seeds, "parent": table.parents, "params": table.params, "tokens": table.tokens}
    write_sheet(
        path,
        {
            "run": table.runs,
            "fidelity": table.fidelities,
            **{name: values for name, values in optional.items() if values is not None and len(values)},
            "cost": table.costs,
            **{f"weight/{name}": values for name, values in zip(table.domains, table.weights.T, strict=True)},
            **table.columns,
            **{f"noise/{name}": values for name, values in table.noise.items()},
        },
    )


def normalized(domains: Sequence[str], runs: Sequence[str], weights: Array) -> tuple[Array, tuple[str, ...]]:
    """Return (N, K) weights with every row on the simplex, and a note if any row was rescaled.

    Raises:
        ConfigError: If a weight is negative or missing, or a row does not sum to 1 within 0.01.
    """
    check_not_negative(domains, runs, weights)
    totals = weights.sum(-1)
    off = np.abs(totals - 1)
    near = off <= NORMALIZED_WITHIN + SUM_TOLERANCE
    odd = next((total for total in totals[~near]), 1.0)
    check(
        runs,
        near,
        f"weights must sum to 1 within {NORMALIZED_WITHIN:g} (K={len(domains)} domains), got {odd:.6g} in",
        "correct them: they are shares of tokens, not percentages or counts",
    )
    moved = off > SUM_TOLERANCE
    if not moved.any():
        return weights, ()
    low, high = totals[moved].min(), totals[moved].max()
    note = f"normalized the weights of {moved.sum()} of {len(runs)} rows, which summed to {low:.4g} to {high:.4g}"
    return np.where(moved[:, None], weights / totals[:, None], weights), (note,)


def stacked(sheet: Sheet, names: Sequence[str]) -> Array:
    """Return some columns of a sheet as one (rows, columns) array of numbers."""
    return np.stack([sheet.numbers(name) for name in names], axis=-1)


def _table(sheet: Sheet) -> RunsTable:
    runs, notes = sheet.texts("run"), list(_header_notes(sheet))
    domains = _after("weight/", sheet)
    weights, rescaled = normalized(domains, runs, stacked(sheet, [f"weight/{name}" for name in domains]))
    params, tokens = (sheet.numbers(name) if name in sheet.columns else None for name in ("params", "tokens"))
    costs, priced = _costs(sheet, params, tokens)
    columns = [name for name in sheet.columns if name.startswith(KINDS)]
    return RunsTable(
        domains=domains,
        runs=runs,
        fidelities=sheet.texts("fidelity") if "fidelity" in sheet.columns else (DEFAULT_FIDELITY,) * len(runs),
        weights=weights,
        columns={name: sheet.numbers(name) for name in columns},
        costs=costs,
        noise=_noise(sheet, columns),
        seeds=sheet.integers("seed") if "seed" in sheet.columns else (),
        parents=tuple(t or None for t in sheet.texts("parent")) if "parent" in sheet.columns else (),
        params=params,
        tokens=tokens,
        notes=(*notes, *priced, *rescaled),
    )


def _check_headers(sheet: Sheet, *, measured: bool) -> None:
    there = f"the file has {listed(sheet.columns)}"
    if "run" not in sheet.columns:
        raise ConfigError(f"expected a column run with an id for every row, {there}; add it")
    if not _after("weight/", sheet):
        raise ConfigError(f"expected a column weight/<domain> for every domain, {there}; rename the columns")
    if measured and not any(name.startswith(KINDS) for name in sheet.columns):
        raise ConfigError(
            f"expected a column loss/<name> (lower is better) or score/<name> (higher is better), {there}; "
            "rename the columns"
        )


def _header_notes(sheet: Sheet) -> Iterator[str]:
    ignored = [name for name in sheet.columns if name not in _KNOWN and not name.startswith(_PREFIXES)]
    if ignored:
        yield f"ignored columns that mean nothing here: {', '.join(ignored)}"
    if "fidelity" not in sheet.columns:
        yield f"there is no column fidelity: all runs were taken to be of one rung called {DEFAULT_FIDELITY}"


def _costs(sheet: Sheet, params: Array | None, tokens: Array | None) -> tuple[Array, tuple[str, ...]]:
    if "cost" in sheet.columns:
        return sheet.numbers("cost"), ()
    if params is not None and tokens is not None and np.isfinite(params * tokens).all():
        return params * tokens, ("there is no column cost: params x tokens was taken",)
    return np.ones(len(sheet)), ("there is no column cost: 1 was taken for every run",)


def _after(prefix: str, sheet: Sheet) -> tuple[str, ...]:
    return tuple(name.removeprefix(prefix) for name in sheet.columns if name.startswith(prefix))


def _noise(sheet: Sheet, columns: Sequence[str]) -> dict[str, Array]:
    """Return {column: standard deviations}; `noise/<name>` may lack the column's loss/ or score/."""
    noise: dict[str, Array] = {}
    for name in _after("noise/", sheet):
        meant = [name] if name in columns else [kind + name for kind in KINDS if kind + name in columns]
        if len(meant) != 1 or meant[0] in noise:
            got = " and ".join(meant) if meant else "no such column"
            raise ConfigError(
                f"column noise/{name} must be the only one about one column, it is about {got}; "
                "write noise/loss/<name> or noise/score/<name>, once"
            )
        noise[meant[0]] = sheet.numbers(f"noise/{name}")
    return noise
