"""The verbs that read text and train: `check` and `run`."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .cli_options import DirectoryOption, JsonOption, StudyArgument, TrackingOption, emit_json
from .cli_progress import ProgressWatch

if TYPE_CHECKING:
    from mixopt.service import Plan
    from mixopt.study import Study

    from .build import Location

logger = logging.getLogger(__name__)

# The tokenizer's threads outlive the fork-free part of the run; the workers are single-threaded.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Jobs at the same time.")]
ExecutorOption = Annotated[str | None, typer.Option("--executor", help="ray or serial.")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Address of an existing Ray cluster.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]


def check(study: StudyArgument, directory: DirectoryOption = None, as_json: JsonOption = False) -> None:
    """Validate a study and estimate its runs, cost and time; trains nothing.

    Tokenizes the text (kept for the run) and times a few training steps.
    """
    from mixopt.study import Study

    from . import build, estimate
    from .cli_tables import check_tables

    location = build.locate(study, directory)
    with ProgressWatch(Console(stderr=True), quiet=as_json) as watch:
        header, evaluator = build.prepare(location, watch.note)
        plan = build.build_plan(location, header, evaluator)
        watch.note("estimate the time")
        summary = estimate.summarize(location.config, header, evaluator, plan, Study(location.directory))
    if as_json:
        emit_json(summary)
        return
    console = Console()
    for item in check_tables(location.config, header, summary):
        console.print(item)
    if summary["measured"] and summary["measured"]["ladder"]:
        typer.echo(summary["measured"]["ladder"], nl=False)  # to be copied: never wrapped


def run(
    study: StudyArgument,
    directory: DirectoryOption = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    device: DeviceOption = None,
    tracking_uri: TrackingOption = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although domains or evaluation sets changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find a mixture: experts, search, validation. The same command resumes."""
    from mixopt.errors import ConfigError

    from . import build

    location = build.locate(study, directory)
    flags = {
        "workers": workers, "executor": executor, "address": address, "device": device, "tracking_uri": tracking_uri,
    }  # fmt: skip
    if executor not in (None, "ray", "serial"):
        raise ConfigError(f"--executor: expected ray or serial, got {executor!r}")
    location = build.with_run_options(location, {key: value for key, value in flags.items() if value is not None})
    with _interruptible(f"mixopt run {study}" + (f" --dir {directory}" if directory else "")):
        code = _run(location, accept_changes=accept_changes, as_json=as_json)
    raise typer.Exit(code)


def _run(location: Location, *, accept_changes: bool, as_json: bool) -> int:
    from mixopt.service import finished, run_study
    from mixopt.storage import RunDirectory
    from mixopt.study import Study

    from . import build, outputs

    files = RunDirectory(location.directory)
    build.check_space(location)
    with files.locked(), ProgressWatch(Console(stderr=True), quiet=as_json) as watch:
        header, evaluator = build.prepare(location, watch.note)
        # The search in this process sums in the same order whatever the machine's default is.
        evaluator.limit_threads()
        plan = build.build_plan(location, header, evaluator)
        ledger = Study(location.directory)
        ledger.check(header, accept_changes=accept_changes)
        changes = ledger.header.ladder.cost_changes(header.ladder) if ledger.headers else []
        if changes:
            logger.warning("costs changed %s; runs so far are charged by the new ones", "; ".join(changes))
        complete = finished(ledger, plan)
        if not complete:
            tracker = build.build_tracker(location)
            executor = build.build_executor(location, evaluator)
            done = False
            try:
                run_study(
                    ledger, plan, executor=executor, tracker=tracker, watch=watch, accept_changes=accept_changes,
                    on_begin=lambda: build.save_config(location),
                )  # fmt: skip
                watch.phase("report")
                outputs.write_outputs(location, ledger)
                done = True
            finally:
                executor.shutdown()
                tracker.finish(ledger, [p for p in outputs.artifacts(ledger) if p.exists()], failed=not done)
        elif not files.report.exists() or not files.mixture.exists():
            outputs.write_outputs(location, ledger)
    return _conclude(location, ledger, plan, seconds=watch.seconds, complete=complete, as_json=as_json)


def _conclude(
    location: Location, ledger: Study, plan: Plan, *, seconds: dict[str, float], complete: bool, as_json: bool
) -> int:
    from mixopt.observation import Status

    from . import outputs
    from .cli_tables import final_tables

    failed = [t for t in ledger.history().trials if t.status in (Status.FAILED, Status.ABANDONED)]
    summary: dict[str, Any] = outputs.summarize(location, ledger)
    summary["already_complete"] = complete
    summary["phase_seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    if as_json:
        emit_json(summary)
    else:
        console = Console()
        if complete:
            console.print("All is done already; nothing was trained.")
        for item in final_tables(location, ledger, summary):
            console.print(item)
    return 3 if failed else 0


@contextmanager
def _interruptible(command: str) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a clean stop that says how to go on; a second one ends this process."""
    from mixopt.stopping import INTERRUPTED, on_signals

    notice = f"stopping: what runs is saved first; a second signal ends at once. Go on later with: {command}\n"
    try:
        with on_signals(signal.SIGINT, signal.SIGTERM, notice=notice):
            yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted; what finished is kept. Go on with: {command}", err=True)
        raise typer.Exit(INTERRUPTED) from None
