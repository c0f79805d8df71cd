"""The verbs about tables of finished runs: `convert`, and `predict` from a table."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mixopt.errors import ConfigError

from .cli_options import JsonOption, emit_json

if TYPE_CHECKING:
    from mixopt.mixture import Mixture
    from mixopt.runs_table import RunsTable

    from .from_runs import RunsPrediction

logger = logging.getLogger(__name__)

_LAYOUTS = ("runs", "regmix", "olmix")
_SHOWN_COLUMNS = 4  # what fits beside the objective on a terminal of 100 characters


def convert(
    source: Annotated[
        list[Path], typer.Argument(help="Runs tables, or folders of the layout --from.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Table (.csv, .parquet) or, for a layout --to, folder to write.")],
    layout: Annotated[str, typer.Option("--from", help="What SOURCE is: runs, regmix or olmix.")] = "runs",
    target: Annotated[str, typer.Option("--to", help="What to write: runs, regmix or olmix.")] = "runs",
    fidelity: Annotated[
        str | None, typer.Option("--fidelity", help="Keep only this rung; from olmix: name of the rung of all runs.")
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option("--cost", help="RUNG=NUMBER, cost of a run; from olmix also NUMBER. May be given several times."),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option("--score", help="From olmix: metric (or pattern) that is better when higher; default none."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert RegMix and olmix files to a runs table and back, or join runs tables.

    Several sources become one table, their rows under each other.
    """
    from mixopt.sheet import kind_of

    for flag, value in (("--from", layout), ("--to", target)):
        if value not in _LAYOUTS:
            raise ConfigError(f"{flag}: expected one of {', '.join(_LAYOUTS)}, got {value!r}")
    if score and layout != "olmix":
        raise ConfigError("--score says which olmix metrics are scores; drop it, or add --from olmix")
    if not force and (any(out.iterdir()) if out.is_dir() else out.exists()):
        raise ConfigError(f"{out} is there already; choose another --out or add --force")
    if target == "runs":
        kind_of(out)
    table = _read(source, layout, fidelity=fidelity, costs=_costs(cost or []), scores=score or [])
    files, notes = _write(table, target, out)
    summary = _summary(table, out, files, [*table.notes, *notes])
    for note in summary["notes"]:
        logger.warning("runs converted: %s", note)
    if as_json:
        emit_json(summary)
        return
    typer.echo(f"wrote {summary['rows']} runs, {len(table.domains)} domains and {len(table.columns)} columns to {out}")
    for rung in summary["rungs"]:
        typer.echo(f"  {rung['name']:<12} {rung['rows']:>6} runs, cost {rung['cost']:g}")


def predict_table(
    runs: Path,
    mixtures: Path | None,
    texts: Sequence[str],
    *,
    fidelity: str | None,
    objective: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Answer `mixopt predict --runs`: every mixture of a table, or typed ones, from finished runs."""
    from mixopt.runs import read_runs
    from mixopt.sheet import kind_of, write_sheet

    from .from_runs import predict_from_runs

    if out:
        kind_of(out)
        if out in (runs, mixtures):
            raise ConfigError(f"--out: {out} is what is read; choose another file")
    table = read_runs(runs)
    names, points, read = _mixtures(table, mixtures, texts)
    answer = predict_from_runs(table, points, fidelity=fidelity, objective=objective)
    notes = [*(f"{runs}: {note}" for note in table.notes), *(f"{mixtures}: {note}" for note in read), *answer.notes]
    for note in notes:
        logger.warning("runs predicted: %s", note)
    if out:
        write_sheet(out, {"run": names, **answer.rows()})
    about: dict[str, Any] = {
        "objective": answer.objective.expression, "fidelity": answer.fidelity, "runs": len(table), "notes": notes,
    }  # fmt: skip
    if as_json:
        emit_json(
            {**about, **({"out": str(out), "rows": len(names)} if out else {"predictions": _rows(names, answer)})}
        )
    elif out:
        typer.echo(f"wrote {len(names)} predictions at rung {answer.fidelity} to {out}")
    else:
        typer.echo(f"Predicted at rung {answer.fidelity}, mean ± std; objective {answer.objective.expression}")
        Console().print(_shown(names, answer))


def check_predict_options(
    study: Path | None, runs: Path | None, *, only_study: Mapping[str, object], only_runs: Mapping[str, object]
) -> None:
    """Raise ConfigError unless there is one source, and no option that is about the other."""
    if (study is None) == (runs is None):
        got = "both" if study else "neither"
        raise ConfigError(f"predict: expected a study or --runs TABLE, got {got}; give exactly one")
    wrong = [name for name, value in (only_study if runs else only_runs).items() if value]
    if wrong:
        what = "a table of runs" if runs else "a study"
        raise ConfigError(f"{', '.join(wrong)} does not go with {what}; drop it")


def _mixtures(
    table: RunsTable, path: Path | None, texts: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Mixture, ...], tuple[str, ...]]:
    from mixopt.mixture import Mixture
    from mixopt.runs import read_mixtures

    if (path is None) == (not texts):
        raise ConfigError("predict --runs: expected --mixtures TABLE or --mixture DOMAIN=WEIGHT,...; give exactly one")
    if path is not None:
        return read_mixtures(path, table.domains)
    return tuple(texts), tuple(Mixture.parse(text, table.domains) for text in texts), ()


def _rows(names: Sequence[str], answer: RunsPrediction) -> list[dict[str, Any]]:
    columns = answer.rows()
    return [{"run": name, **{key: float(values[i]) for key, values in columns.items()}} for i, name in enumerate(names)]


def _shown(names: Sequence[str], answer: RunsPrediction) -> Table:
    columns = [name for name in answer.mean if name != "objective"]
    more = len(columns) > _SHOWN_COLUMNS
    shown = Table(box=None, pad_edge=False)
    shown.caption = f"all {len(columns)} columns: --json or --out" if more else None
    shown.add_column("run", no_wrap=True)
    keys = ["objective", *([] if more else columns)]
    for key in keys:
        shown.add_column(key, justify="right")
    for i, name in enumerate(names):
        shown.add_row(name, *(f"{answer.mean[key][i]:.4f} ± {answer.std[key][i]:.4f}" for key in keys))
    return shown


def _costs(words: Iterable[str]) -> dict[str, float]:
    """Read RUNG=NUMBER; a bare NUMBER is kept under the empty name."""
    costs: dict[str, float] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not 0 < number < float("inf") or name in costs:
            raise ConfigError(f"--cost: expected RUNG=NUMBER with a positive number, each rung once, got {word!r}")
        costs[name] = number
    return costs


def _read(
    sources: Sequence[Path], layout: str, *, fidelity: str | None, costs: dict[str, float], scores: Sequence[str]
) -> RunsTable:
    from mixopt.layouts import read_olmix, read_regmix
    from mixopt.runs import DEFAULT_FIDELITY, read_runs
    from mixopt.runs_table import concat

    if layout == "olmix":
        rung = fidelity or DEFAULT_FIDELITY
        if set(costs) - {"", rung} or len(costs) > 1:
            raise ConfigError(f"--cost: the runs of an olmix folder are all of rung {rung}; give one number")
        price = next(iter(costs.values()), 1.0)
        return concat([read_olmix(path, fidelity=rung, cost=price, scores=scores) for path in sources])
    if "" in costs:
        raise ConfigError("--cost: expected RUNG=NUMBER, as there may be several rungs; name the rung")
    if layout == "regmix":
        return _kept(concat([read_regmix(path, costs) for path in sources]), fidelity)
    folder = next((path for path in sources if path.is_dir()), None)
    if folder:
        raise ConfigError(f"{folder} is a folder; say its layout with --from regmix or --from olmix")
    return _kept(concat([read_runs(path) for path in sources]).priced(costs), fidelity)


def _kept(table: RunsTable, fidelity: str | None) -> RunsTable:
    if fidelity is None:
        return table
    rows = [row for row, name in enumerate(table.fidelities) if name == fidelity]
    if not rows:
        raise ConfigError(
            f"--fidelity: no run has {fidelity!r}; there are {', '.join(dict.fromkeys(table.fidelities))}"
        )
    return table.select(rows)


def _write(table: RunsTable, layout: str, out: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    from mixopt.layouts import write_olmix, write_regmix
    from mixopt.runs import write_runs

    if layout == "runs":
        write_runs(table, out)
        return (out,), ()
    written = (write_regmix if layout == "regmix" else write_olmix)(table, out)
    return written.files, written.notes


def _summary(table: RunsTable, out: Path, files: Sequence[Path], notes: Sequence[str]) -> dict[str, Any]:
    costs: dict[str, list[float]] = {name: [] for name in table.fidelities}
    for name, price in zip(table.fidelities, table.costs, strict=True):
        costs[name].append(float(price))
    return {
        "out": str(out),
        "files": [str(path) for path in files],
        "rows": len(table),
        "rungs": [{"name": name, "rows": len(found), "cost": sum(found) / len(found)} for name, found in costs.items()],
        "domains": list(table.domains),
        "columns": list(table.columns),
        "notes": list(notes),
    }
