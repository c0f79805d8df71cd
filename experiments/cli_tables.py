"""Tables for the terminal, from plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mixopt.config import StudyConfig
from mixopt.study import Header, Study

from .build import Location
from .comparison import UNIT_LABELS


def duration(seconds: float) -> str:
    """Return seconds in words: 45 s, 3.2 min, 1 h 12 min, 2 d 3 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.1f} min"
    days, rest = divmod(round(seconds / 60), 1440)
    hours, minutes = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h")] if days else [(hours, "h"), (minutes, "min")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def flop(count: float) -> str:
    """Return a number of floating-point operations in words: 850 MFLOP, 3.4 PFLOP."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
    step = 0
    while abs(count) >= 999.5 and step < len(prefixes) - 1:
        count, step = count / 1000, step + 1
    return f"{count:.3g} {prefixes[step]}FLOP"


def plus_minus(mean: float | None, spread: float | None) -> str:
    """Return `3.1512 +- 0.0031`, with what is known."""
    if mean is None:
        return "-"
    return f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def check_tables(config: StudyConfig, header: Header, summary: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield what `mixopt check` prints."""
    domains = _table("Domains", "name", "documents", "tokens", "epochs at the top rung if alone")
    for item in summary["domains"]:
        epochs = summary["epochs_at_top"][item["name"]]
        domains.add_row(item["name"], f"{item['documents']:,}", f"{item['tokens']:,}", f"{epochs:g}")
    yield domains
    sets = _table("Evaluation sets", "name", "tokens", "bytes")
    for item in summary["eval_sets"]:
        sets.add_row(item["name"], f"{item['tokens']:,}", f"{item['bytes']:,}")
    yield sets
    yield _ladder_table(summary)
    runs = _table("Runs, in runs at the top rung", "phase", "runs")
    for name, value in summary["runs_at_top"].items():
        runs.add_row(name, f"{value:g}")
    yield runs
    params, estimate, measured = summary["params"], summary["estimated"], summary["measured"]
    yield Text(f"Objective: {header.objective['expression']}, {UNIT_LABELS[header.objective['unit']]}, minimized")
    yield Text(f"Constraints: {summary['constraints'] or 'none but the simplex'}")
    yield Text(f"Proxy at the top rung: {params['total'] / 1e6:.2f}M parameters, {params['active'] / 1e6:.2f}M active")
    yield Text(
        f"Estimated training on this machine: {duration(estimate['process_seconds'])} of CPU time, "
        f"{duration(estimate['wall_seconds'])} with {config.run.workers} workers ({flop(estimate['flops'])}), "
        f"from {estimate['from']}"
    )
    if summary["changed_costs"]:
        yield Text(f"Costs differ from those of the study so far: {'; '.join(summary['changed_costs'])}.")
        yield Text("The next run charges all runs so far by the new costs; none of them is lost.")
    if measured and measured["ladder"] is None:
        yield Text("By time the rungs are not in this order; reorder the ladder to search by time.")
    elif measured:
        yield Text("To search by time measured here, replace the ladder in the study file by these lines:")


def _ladder_table(summary: dict[str, Any]) -> Table:
    seconds = summary["measured"]["seconds"] if summary["measured"] else {}
    timed = ["CPU time here"] if seconds else []
    table = _table("Ladder", "rung", "model", "tokens", "training", "cost in top-rung runs", *timed)
    for item in summary["ladder"]:
        row = [item["name"], item["model"], f"{item['tokens']:,}", flop(item["flops"]), f"{item['cost']:.3f}"]
        table.add_row(*row, *([duration(seconds[item["name"]])] if seconds else []))
    return table


def final_tables(location: Location, study: Study, summary: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield what `mixopt run` prints at the end."""
    contenders = summary["contenders"]
    unit = UNIT_LABELS[study.header.objective["unit"]]
    labels = [item["label"] for item in contenders]
    title = f"Shares of tokens (epochs at {summary['epochs_at_tokens']:,} tokens)"
    weights = _table(title, "domain", *labels)
    for domain in study.header.domain_names:
        row = [f"{item['weights'][domain]:.3f} ({item['epochs'][domain]:.2f})" for item in contenders]
        weights.add_row(domain, *row)
    yield weights
    yield from _losses(study, summary, unit)
    spent = _table("Cost", "phase", "trials", "top-rung runs", "CPU time")
    for row in summary["costs"]:
        spent.add_row(row["role"], str(row["num_trials"]), f"{row['cost']:.2f}", duration(row["process_seconds"]))
    total = summary["costs"]
    spent.add_row(
        "total", str(sum(r["num_trials"] for r in total)), f"{sum(r['cost'] for r in total):.2f}",
        duration(sum(r["process_seconds"] for r in total)),
    )  # fmt: skip
    yield spent
    if study.stopped:
        yield Text(f"The search stopped: {study.stopped}.")
    yield from _places(location, summary)


def _losses(study: Study, summary: dict[str, Any], unit: str) -> Iterator[RenderableType]:
    rows = summary["comparison"]
    seeds = max((row["num_seeds"] for row in rows), default=0)
    title = f"Objective at rung {study.header.ladder.target.name}, {unit}, on {seeds} fresh seeds"
    table = _table(title, "mixture", "predicted", "measured", "minus recommended")
    for row in (r for r in rows if r["column"] == "objective"):
        gap = "" if row["label"] == "recommended" else plus_minus(row["difference"], row["standard_error"])
        predicted = plus_minus(row["predicted_mean"], row["predicted_std"])
        table.add_row(row["label"], predicted, plus_minus(row["mean"], row["spread"]), gap)
    yield table
    yield Text(
        "± is one standard deviation; in the last column the standard error of the difference, paired by seed.",
        style="dim",
    )
    labels = [c["label"] for c in summary["contenders"]]
    measured = _table(f"Measured losses, {unit}", "column", *labels)
    for column in dict.fromkeys(row["column"] for row in rows if row["column"] != "objective"):
        found = {r["label"]: r for r in rows if r["column"] == column}
        measured.add_row(column, *(plus_minus(found[label]["mean"], found[label]["spread"]) for label in labels))
    yield measured
    from .comparison import compare
    from .sentences import gain_sentences

    for sentence in gain_sentences(study, compare(study)):
        yield Text(sentence)
    recommendation = study.recommendation
    if recommendation and recommendation.regret_bound is not None:
        yield Text(
            f"With probability 0.95 no mixture is better by more than {recommendation.regret_bound:.4f} {unit}, "
            "under the surrogate."
        )
    if recommendation and recommendation.best_probability is not None:
        yield Text(
            f"It is the best but for the noise of one run with probability {recommendation.best_probability:.2f}."
        )


def _places(location: Location, summary: dict[str, Any]) -> Iterator[RenderableType]:
    files = summary["files"]
    yield Text(f"Mixture    {files['mixture']}")
    yield Text(f"Report     {files['report']}")
    yield Text(f"Dashboard  mixopt dashboard {location.directory}")


def proposal_tables(summary: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield what `mixopt init` prints."""
    domains = _table(
        "Domains, estimated from a sample", "name", "files", "MB", "documents", "tokens", "bytes/token", "column"
    )
    for item in summary["domains"]:
        rate = "-" if item["bytes_per_token"] is None else f"{item['bytes_per_token']:.2f}"
        counts = (f"{item['files']:,}", f"{item['bytes'] / 1e6:.1f}", f"{item['documents']:,}", f"{item['tokens']:,}")
        domains.add_row(item["name"], *counts, rate, item["text"])
    yield domains
    rungs = _table("Ladder", "rung", "tokens", "training")
    for item in summary["ladder"]:
        rungs.add_row(item["name"], f"{item['tokens']:,}", flop(item["flops"]))
    yield rungs
    runs, estimate = summary["runs_at_top"], summary["estimated"]
    parts = ", ".join(f"{value:g} {name}" for name, value in runs.items() if name != "total")
    yield Text(
        f"Runs: about {runs['total']:g} at the top rung ({parts}), {estimate['tokens_trained']:,.0f} tokens trained"
    )
    if estimate["process_seconds"] is None:
        yield Text(f"Estimated training: {flop(estimate['flops'])}; the text is too short to time it")
    else:
        yield Text(
            f"Estimated training on this machine: {duration(estimate['process_seconds'])} of CPU time, "
            f"{duration(estimate['wall_seconds'])} with {estimate['workers']} workers ({flop(estimate['flops'])}), "
            f"from {estimate['from']}"
        )
    for warning in summary["warnings"]:
        yield Text(f"Warning: {warning}")
    yield Text(f"Wrote {summary['study']}. Next: {summary['next'][0]}")
