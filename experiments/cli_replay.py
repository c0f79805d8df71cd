"""The verb `replay`: optimizers compared on a table of finished runs."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .cli_options import JsonOption, emit_json

if TYPE_CHECKING:
    from .benchmarks import Result

logger = logging.getLogger(__name__)

TableArgument = Annotated[
    Path, typer.Argument(help="Finished runs, CSV or parquet (see `mixopt convert`).", show_default=False)
]


def replay(
    table: TableArgument,
    target_fidelity: Annotated[str, typer.Option("--target-fidelity", help="Rung whose best run is searched.")],
    objective: Annotated[
        list[str] | None, typer.Option("--objective", help="What is minimized, e.g. 'mean(loss/*)'; repeatable.")
    ] = None,
    random_objectives: Annotated[
        int, typer.Option("--random-objectives", min=0, help="Also this many random weightings of all columns.")
    ] = 0,
    optimizers: Annotated[str, typer.Option("--optimizers", help="Names, separated by commas.")] = "mfbo,random",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Replays per optimizer and objective.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="First seed, and that of the random objectives.")] = 0,
    budget: Annotated[float, typer.Option("--budget", help="Cost to spend, in mean target runs.")] = 40.0,
    max_decisions: Annotated[
        int | None, typer.Option("--max-decisions", min=1, help="End a replay after this many purchases.")
    ] = None,
    until_best: Annotated[
        bool, typer.Option("--until-best", help="End a replay once the best run is measured; regret is 0 from there.")
    ] = False,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="Experts' scores (a run directory or scores folder), for mfbo+mde and mde."),
    ] = None,
    experts_fidelity: Annotated[
        str | None, typer.Option("--experts-fidelity", help="Rung of the experts; default the target rung.")
    ] = None,
    experts_seed: Annotated[
        int | None, typer.Option("--experts-seed", help="Seed of the experts, where there are several.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Replays at the same time.")] = 1,
    cache: Annotated[Path, typer.Option("--cache", help="Folder of finished replays.")] = Path("runs/replay"),
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep finished replays.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="CSV file to write, a row per decision.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare optimizers on finished runs: they buy rows, and every purchase is charged.

    A replay that is done is kept and not done again, so the same command resumes.
    """
    from mixopt.errors import ConfigError
    from mixopt.runs import read_runs
    from mixopt.storage import write_text

    from . import benchmarks, public

    runs = read_runs(public.resolve(table))
    drawn = benchmarks.random_objectives(list(runs.columns), random_objectives, seed)
    objectives: dict[str, benchmarks.Expression] = {text: text for text in objective or []}
    if not objectives and not drawn:
        raise ConfigError("nothing is minimized; give --objective, for example 'mean(loss/*)', or --random-objectives")
    if out and out.is_dir():
        raise ConfigError(f"--out: expected a file to write, got the folder {out}; name a file in it")
    settings = benchmarks.Benchmark(
        target_fidelity, objectives | drawn, _names(optimizers), range(seed, seed + seeds), budget, max_decisions,
        until_best,
    )  # fmt: skip
    ground = benchmarks.Ground(runs)
    if scores is not None:
        columns = settings.columns(runs)
        ground = public.ground(runs, columns, scores, experts_fidelity or target_fidelity, experts_seed)
    jobs = settings.jobs(ground)
    with _progress(len(jobs)) as done:
        results = benchmarks.run_all(ground, jobs, workers=workers, cache=None if no_cache else cache, done=done)
    if out:
        write_text(out, _csv(benchmarks.DECISION_COLUMNS, benchmarks.decision_rows(results)))
    random = [result for result in results if result.job.label in drawn]
    summary = {
        "results": benchmarks.summarize(results),
        "pooled": benchmarks.pooled(random, f"{len(drawn)} random objectives") if random else [],
        "objectives": settings.objectives,
        "notes": [*runs.notes, *benchmarks.notes(runs, jobs, results), *ground.notes(runs.ladder(target_fidelity))],
    }
    if as_json:
        emit_json(summary)
        return
    console = Console()
    for item in _tables(summary, target_fidelity, budget):
        console.print(item)


def _names(text: str) -> tuple[str, ...]:
    from mixopt.errors import ConfigError

    found = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not found:
        raise ConfigError("--optimizers: expected names separated by commas, got none; write for example mfbo,random")
    return found


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Result], None]]:
    """Yield what to call with every result: a bar on a terminal, and a log line each."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("replays"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replays", total=total, last="")

        def done(result: Result) -> None:
            job, score = result.job, result.replay.score
            logger.info(
                "replay done optimizer=%s objective=%s seed=%d cost_to_best=%.3f area=%.4f seconds_per_decision=%.3f",
                job.optimizer, job.label, job.seed, score.cost_to_best, score.area, result.replay.seconds_per_decision,
            )  # fmt: skip
            progress.update(task, advance=1, last=f"{job.optimizer} {job.label} seed {job.seed}")

        yield done


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _tables(summary: dict[str, Any], target: str, budget: float) -> Iterator[RenderableType]:
    """Yield a table per objective, the random ones pooled and then one by one."""
    labels = dict.fromkeys(row["objective"] for row in summary["results"])
    for label in labels:
        if isinstance(summary["objectives"][label], str):
            yield _table(label, [row for row in summary["results"] if row["objective"] == label])
    if summary["pooled"]:
        yield _table(summary["pooled"][0]["objective"], summary["pooled"])
        yield _one_by_one(summary)
    yield Text(
        f"Costs are in mean runs at {target}; a best run that is not found within the budget of {budget:g} costs the "
        "budget. Area: mean over the budget of regret / initial regret. ± is one standard error"
        f"{', over objectives where they are pooled' if summary['pooled'] else ''}.",
        style="dim",
    )
    for note in summary["notes"]:
        yield Text(f"Note: {note}")


def _table(title: str, rows: Sequence[dict[str, Any]]) -> RenderableType:
    table = _empty(
        title, "optimizer", "cost to best", "found", "area", "final regret", "recommended", "runs", "s/decision"
    )
    for row in rows:
        table.add_row(
            row["optimizer"],
            _measured(row, "cost_to_best", 2),
            f"{row['success']:.0%}",
            _measured(row, "auc", 3),
            _measured(row, "regret_at_budget", 4),
            _measured(row, "recommendation_regret", 4),
            " ".join(f"{rung} {count:.4g}" for rung, count in row["runs_bought"].items()),
            f"{row['seconds_per_decision']:.2f}",
        )
    return table


def _one_by_one(summary: dict[str, Any]) -> RenderableType:
    rows = [row for row in summary["results"] if not isinstance(summary["objectives"][row["objective"]], str)]
    names = [row["optimizer"] for row in summary["pooled"]]
    table = _empty("Cost to best, objective by objective", "objective", *names)
    for label in dict.fromkeys(row["objective"] for row in rows):
        mine = {row["optimizer"]: row for row in rows if row["objective"] == label}
        table.add_row(label, *(_measured(mine[name], "cost_to_best", 2) for name in names))
    return table


def _empty(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def _measured(row: dict[str, Any], name: str, places: int) -> str:
    error = row[f"{name}_se"]
    return f"{row[f'{name}_mean']:.{places}f}" + ("" if error is None else f" ± {error:.{places}f}")
