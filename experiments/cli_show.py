"""The verbs that read a study: `status`, `predict`, `report`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mixopt.errors import ConfigError

from .cli_options import DirectoryOption, JsonOption, StudyArgument, emit_json
from .cli_progress import last_point
from .comparison import unit_label


def status(study: StudyArgument, directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """Say what is done, running and failed, the best so far, the budget left, and whether to trust the predictor."""
    from mixopt.observation import Role, Status
    from mixopt.study import Study

    from . import build
    from .trusting import trust_rows

    location = build.locate(study, directory)
    ledger = Study(location.directory)
    header = ledger.header
    trials = ledger.history(seeds=True).trials
    roles = [role for role in Role if role is not Role.SEED or header.warm_start]
    best = ledger.best()
    spent, recommended = ledger.spent(), ledger.recommendation
    running = [t for t in trials if t.status is Status.RUNNING]
    summary: dict[str, Any] = {
        "name": header.name,
        "run_directory": str(location.directory),
        "trials": {
            str(role): dict(Counter(str(t.status) for t in trials if t.role is role)) for role in roles
        },
        "running": [{"id": t.id, "fidelity": t.fidelity, "tokens": last_point(ledger, t.id)[0]} for t in running],
        "troubled": [
            {"id": t.id, "status": str(t.status), "note": t.note}
            for t in trials if t.status in (Status.FAILED, Status.ABANDONED)
        ],
        "best": best and {"id": best[0].id, "objective": best[1], "weights": best[0].mixture.as_dict()},
        "budget": None if math.isinf(header.budget) else header.budget,
        "spent": round(spent, 4),
        "stopped": ledger.stopped,
        "recommended": recommended and recommended.mixture.as_dict(),
        "predicted": recommended and recommended.mean.get("objective"),
        "predicted_std": recommended and recommended.std.get("objective"),
        "predictor": trust_rows(ledger),
    }  # fmt: skip
    if as_json:
        emit_json(summary)
    else:
        _print_status(summary, unit_label(ledger))


def _print_status(summary: dict[str, Any], unit: str) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{summary['name']}[/bold]  {summary['run_directory']}")
    for role, counts in summary["trials"].items():
        console.print(f"{role:<11}" + (", ".join(f"{n} {status}" for status, n in counts.items()) or "none yet"))
    for item in summary["running"]:
        console.print(f"  running {item['id']} at {item['tokens']:,} tokens on its way to {item['fidelity']}")
    for item in summary["troubled"]:
        console.print(f"  {item['status']} {item['id']}: {item['note']}", markup=False)
    limit = "" if summary["budget"] is None else f" of {summary['budget']:g}"
    console.print(f"search spent {summary['spent']:.2f}{limit} top-rung runs")
    if summary["best"]:
        console.print(f"best measured {summary['best']['objective']:.4f} {unit} ({summary['best']['id']})")
    if summary["stopped"]:
        console.print(f"the search stopped: {summary['stopped']}")
    if summary["recommended"]:
        shown = ", ".join(f"{name} {weight:.3f}" for name, weight in summary["recommended"].items())
        console.print(f"recommended: {shown}")
    if summary["predicted"] is not None:
        console.print(f"predicted {summary['predicted']:.4f} ± {summary['predicted_std']:.4f} {unit}")
    if summary["predictor"]:
        console.print(_trust_table(summary["predictor"], unit))


def _trust_table(rows: list[dict[str, Any]], unit: str) -> Table:
    title = f"MDE against measured mixtures at rung {rows[0]['fidelity']}: rank agreement [90%], then {unit}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("column", "mixtures", "agreement", "shift", "error after it", "without MDE", "verdict"):
        table.add_column(name, justify="left" if name in ("column", "verdict") else "right")
    for row in rows:
        shown = [_shown(row[name], ".4f") for name in ("shift", "error", "spread")]
        ranks = "n/a" if row["rank"] is None else f"{row['rank']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        table.add_row(row["column"], str(row["num_mixtures"]), ranks, *shown, row["verdict"])
    return table


def _shown(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def predict(
    study: Annotated[
        Path | None,
        typer.Argument(help="Study file (YAML) or run directory; or none, with --runs.", show_default=False),
    ] = None,
    mixture: Annotated[
        list[str] | None,
        typer.Option("--mixture", help="DOMAIN=WEIGHT,... summing to 1; may be given several times."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Predict from this runs table instead of a study.")
    ] = None,
    mixtures: Annotated[
        Path | None, typer.Option("--mixtures", help="With --runs: table with run and weight/<domain> to predict.")
    ] = None,
    fidelity: Annotated[
        str | None, typer.Option("--fidelity", help="Rung to predict; default the top or dearest rung.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="With --runs: expression; default mean(loss/*), or mean(score/*)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --runs: table (.csv, .parquet) to write the predictions to.")
    ] = None,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the losses of mixtures, with uncertainty, without training them."""
    from . import cli_runs

    cli_runs.check_predict_options(
        study, runs,
        only_study={"--dir": directory},
        only_runs={"--mixtures": mixtures, "--objective": objective, "--out": out},
    )  # fmt: skip
    texts = mixture or []
    if runs is not None:
        cli_runs.predict_table(runs, mixtures, texts, fidelity=fidelity, objective=objective, out=out, as_json=as_json)
        return
    assert study is not None
    if not texts:
        raise ConfigError("predict: expected at least one --mixture DOMAIN=WEIGHT,..., got none; name one")
    _predict_study(study, texts, fidelity=fidelity, directory=directory, as_json=as_json)


def _predict_study(
    study: Path, texts: list[str], *, fidelity: str | None, directory: Path | None, as_json: bool
) -> None:
    from mixopt.mixture import Mixture
    from mixopt.study import Study

    from . import build
    from .comparison import unit_factor

    location = build.locate(study, directory)
    ledger = Study(location.directory)
    names = ledger.header.domain_names
    mixtures = [Mixture.parse(text, names) for text in texts]
    rung = (ledger.header.ladder[fidelity] if fidelity else ledger.header.ladder.target).name
    prediction = build.open_optimizer(location, ledger).predict(ledger.history(), mixtures, fidelity=rung)
    rows = [
        {
            "weights": m.as_dict(),
            "fidelity": rung,
            "unit": ledger.header.objective["unit"],
            **{f"mean/{name}": float(v[i]) * unit_factor(ledger, name) for name, v in prediction.mean.items()},
            **{f"std/{name}": float(v[i]) * unit_factor(ledger, name) for name, v in prediction.std.items()},
        }
        for i, m in enumerate(mixtures)
    ]
    if as_json:
        emit_json({"predictions": rows})
        return
    unit = unit_label(ledger)
    table = Table(title=f"Predicted at rung {rung}, {unit}, mean ± std", title_justify="left", box=None, pad_edge=False)
    table.add_column("column")
    for text in texts:
        table.add_column(text, justify="right")
    for name in prediction.mean:
        table.add_row(name, *(f"{row[f'mean/{name}']:.4f} ± {row[f'std/{name}']:.4f}" for row in rows))
    Console().print(table)


def report(study: StudyArgument, directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """Write the report: one self-contained HTML page."""
    from mixopt.study import Study

    from . import build
    from .report import write_report

    location = build.locate(study, directory)
    ledger = Study(location.directory)
    path = write_report(ledger, ledger.files.report, target_tokens=location.study.constraints.target_tokens)
    if as_json:
        emit_json({"report": str(path)})
    else:
        typer.echo(path)
