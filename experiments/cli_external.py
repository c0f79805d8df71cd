"""The verbs for runs that are trained elsewhere: `suggest` and `tell`."""

from __future__ import annotations

import csv
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .cli_options import DirectoryOption, JsonOption, StudyArgument, emit_json

if TYPE_CHECKING:
    from .external import ExternalStudy, Suggestion
    from .telling import Telling

logger = logging.getLogger(__name__)

AcceptOption = Annotated[bool, typer.Option("--accept-changes", help="Go on although domains or rungs changed.")]
STDOUT = Path("-")


def suggest(
    study: StudyArgument,
    num: Annotated[int | None, typer.Option("-n", min=1, help="Runs to suggest; default search.batch_size.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Table to write, .csv or .parquet; '-' is CSV on stdout.")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option("--candidates", help="Table of run, fidelity, weight/...: suggest only its rows.")
    ] = None,
    pending: Annotated[
        bool, typer.Option("--pending", help="Show the suggestions not told yet once more; suggest nothing new.")
    ] = False,
    directory: DirectoryOption = None,
    accept_changes: AcceptOption = False,
    as_json: JsonOption = False,
) -> None:
    """Suggest runs for a trainer of your own; asked again, suggest further ones."""
    from mixopt.runs import read_runs

    from .external import ExternalStudy

    opened = ExternalStudy.open(study, directory, accept_changes=accept_changes)
    _check_out(out, as_json=as_json)
    if pending:
        suggestions = opened.pending
    else:
        table = None if candidates is None else read_runs(candidates, measured=False)
        suggestions = opened.ask(num, candidates=table)
    _write(suggestions, opened, out)
    wanted = opened.config.search.batch_size if num is None else num
    why = opened.why_fewer() if len(suggestions) < wanted and not pending else None
    if as_json:
        emit_json({"suggestions": [_plain(s) for s in suggestions], "out": out and str(out), "fewer_because": why})
        return
    if out is None:
        Console().print(_suggestion_table(suggestions))
    elif out != STDOUT:
        typer.echo(f"wrote {len(suggestions)} runs to {out}; when they are trained: mixopt tell {study} --runs TABLE")
    if why:
        typer.echo(f"{len(suggestions)} of {wanted} runs suggested: {why}", err=True)


def tell(
    study: StudyArgument,
    runs: Annotated[Path, typer.Option("--runs", help="Runs table of what was trained, .csv or .parquet.")],
    directory: DirectoryOption = None,
    accept_changes: AcceptOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what runs showed: suggested ones by their id, and any others you have.

    The same run told twice is one observation. If a row cannot be used, nothing is recorded.
    """
    from mixopt.runs import read_runs

    from .external import ExternalStudy

    opened = ExternalStudy.open(study, directory, accept_changes=accept_changes)
    table = read_runs(runs)
    for note in table.notes:
        logger.warning("%s: %s", runs, note)
    telling = opened.tell_runs(table)
    if telling.ignored:
        logger.warning(
            "%s: columns that the study file does not list are ignored: %s", runs, ", ".join(telling.ignored)
        )
    summary = _summary(telling, opened)
    if as_json:
        emit_json(summary)
    else:
        _print_summary(summary)


def _check_out(out: Path | None, *, as_json: bool) -> None:
    """Refuse a table that could not be written, before anything is recorded."""
    from mixopt.errors import ConfigError
    from mixopt.sheet import SUFFIXES

    if out == STDOUT and as_json:
        raise ConfigError("--out -: --json writes to stdout too; name a file or drop one of them")
    if out not in (None, STDOUT) and out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out: expected a name that ends in {' or '.join(SUFFIXES)}, or '-', got {out}")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}; make it first")


def _write(suggestions: Sequence[Suggestion], study: ExternalStudy, out: Path | None) -> None:
    from mixopt.sheet import write_sheet

    from .external import as_columns

    columns = as_columns(suggestions, study.domains)
    if out == STDOUT:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(list(values) for values in columns.values()), strict=True))
    elif out is not None:
        write_sheet(out, columns)


def _plain(suggestion: Suggestion) -> dict[str, Any]:
    candidate = {"candidate": suggestion.candidate} if suggestion.candidate else {}
    return {
        "run": suggestion.run, "fidelity": suggestion.fidelity, "weights": suggestion.weights,
        "cost": suggestion.cost, "reason": suggestion.reason, **candidate,
    }  # fmt: skip


def _suggestion_table(suggestions: Sequence[Suggestion]) -> Table:
    table = Table(title="To train", title_justify="left", box=None, pad_edge=False)
    for name in ("run", "fidelity", "cost", "mixture", "reason"):
        table.add_column(name, justify="right" if name == "cost" else "left")
    for s in suggestions:
        name = f"{s.run} = {s.candidate}" if s.candidate else s.run
        table.add_row(name, s.fidelity, f"{s.cost:g}", _shown(s.weights), s.reason)
    return table


def _shown(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.3f}" for name, weight in weights.items() if weight > 0)


def _summary(telling: Telling, study: ExternalStudy) -> dict[str, Any]:
    recommendation, best, left = study.recommend(), study.best, study.budget_left
    return {
        "told": len(telling.results),
        "own": len(telling.trials),
        "failed": list(telling.failed),
        "known_already": len(telling.known),
        "ignored_columns": list(telling.ignored),
        "pending": [s.run for s in study.pending],
        "budget_left": None if math.isinf(left) else round(left, 6),
        "best": best and {"run": best[0], "weights": best[1].as_dict(), "objective": best[2]},
        "recommendation": recommendation.to_json(),
    }


def _print_summary(summary: dict[str, Any]) -> None:
    failed, pending = summary["failed"], summary["pending"]
    typer.echo(
        f"{summary['told']} runs told, {summary['own']} of them new ones of your own, {len(failed)} failed; "
        f"{summary['known_already']} were known already"
    )
    if pending:
        typer.echo(
            f"{len(pending)} suggestions are not told yet: {', '.join(pending[:8])}{' ...' * (len(pending) > 8)}"
        )
    if summary["best"]:
        typer.echo(f"best measured: objective {summary['best']['objective']:.5g} ({summary['best']['run']})")
    typer.echo(_recommended(summary["recommendation"]))


def _recommended(recommendation: dict[str, Any]) -> str:
    mean, std = recommendation["mean"].get("objective"), recommendation["std"].get("objective")
    predicted = "" if mean is None else f"; objective {mean:.5g} ± {std:.2g} at {recommendation['fidelity']}"
    return f"recommended: {_shown(recommendation['weights'])}{predicted}"
