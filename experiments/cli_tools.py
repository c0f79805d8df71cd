"""The verbs around a study: `init`, `dashboard`, `sync`, `doctor`."""

from __future__ import annotations

import subprocess  # nosec B404: starts MLflow, without a shell
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from .cli_options import DirectoryOption, JsonOption, StudyArgument, TrackingOption, emit_json

if TYPE_CHECKING:
    from mixopt.config import StudyConfig

    from .proposing import Proposal


def init(
    folder: Annotated[
        Path, typer.Argument(help="Folder with one file or sub-folder of text per domain.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Study file to write.")] = Path("study.yaml"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the study; default the folder's name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the study file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a folder of text and write a commented study file that suits it.

    Sizes are estimated from a sample of each domain, time from a few training steps on it.
    """
    from mixopt.config import validate
    from mixopt.errors import ConfigError
    from mixopt.storage import write_text

    from .initialize import Draft, find_domains, study_yaml, usable_name
    from .proposing import propose

    if out.exists() and not force:
        raise ConfigError(f"{out} is there already; choose another --out or add --force")
    domains, title = find_domains(folder), name or usable_name(folder.resolve().name)

    def text(draft: Draft) -> str:
        return study_yaml(title, domains, out.resolve().parent, draft=draft)

    def configure(draft: Draft) -> StudyConfig:
        return validate(yaml.safe_load(text(draft)), str(out))

    proposal = propose(domains, configure)
    config = configure(proposal.draft)
    write_text(out, text(proposal.draft))
    _show_proposal(proposal, config, out, as_json=as_json)


def _show_proposal(proposal: Proposal, config: StudyConfig, out: Path, *, as_json: bool) -> None:
    from rich.console import Console

    from .cli_tables import proposal_tables
    from .proposing import summarize

    summary = summarize(proposal, config, out)
    if as_json:
        emit_json(summary)
        return
    console = Console(highlight=False)
    for item in proposal_tables(summary):
        console.print(item)


def dashboard(
    study: StudyArgument,
    directory: DirectoryOption = None,
    tracking_uri: TrackingOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen at.")] = 5057,
    allowed_hosts: Annotated[
        str | None,
        typer.Option("--allowed-hosts", help="Host names that browsers may use; needed beyond this machine."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the MLflow UI on this study until interrupted."""
    from mixopt.errors import ConfigError, ResourceError
    from mixopt.study import Study
    from mixopt.tracking import MlflowTracker, shown_uri, without_secrets

    from . import build

    location = build.locate(study, directory)
    if tracking_uri:
        location = build.with_run_options(location, {"tracking_uri": tracking_uri})
    if host not in ("127.0.0.1", "localhost", "::1") and not allowed_hosts:
        raise ConfigError(f"--host: {host} is reachable by others; name the host names they use with --allowed-hosts")
    tracker = build.build_tracker(location)
    if not isinstance(tracker, MlflowTracker):
        raise ConfigError("run.tracking_uri is none, so there is nothing to show; give --tracking-uri")
    uri, link = tracker.uri, tracker.dashboard_link(Study(location.directory))
    if uri.startswith("http"):
        url, command = f"{without_secrets(uri).rstrip('/')}/{link}", []
    else:
        url = f"http://{host}:{port}/{link}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            uri,
            "--host",
            host,
            "--port",
            str(port),
        ]
        command += ["--workers", "1", *(["--allowed-hosts", allowed_hosts] if allowed_hosts else [])]
    if as_json:
        emit_json({"url": url, "command": [shown_uri(word) for word in command]})
        return
    typer.echo(f"{url}\n(+ before the study's name shows its trials; Ctrl-C stops the server)")
    if command and subprocess.run(command, check=False).returncode not in (0, -2, 130):  # nosec B603: a list, no shell
        raise ResourceError(f"the MLflow server could not run on port {port}; choose another --port")


def sync(
    study: StudyArgument,
    directory: DirectoryOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the MLflow projection up to date with the ledger; twice changes nothing."""
    from mixopt.study import Study
    from mixopt.tracking import shown_uri

    from . import build, outputs

    location = build.locate(study, directory)
    if tracking_uri:
        location = build.with_run_options(location, {"tracking_uri": tracking_uri})
    ledger = Study(location.directory)
    num_trials = len(ledger.trials) if ledger.header else 0
    tracker = build.build_tracker(location)
    tracker.project(ledger)
    tracker.finish(ledger, [p for p in outputs.artifacts(ledger) if p.exists()], failed=ledger.recommendation is None)
    uri = shown_uri(getattr(tracker, "uri", "none"))
    if as_json:
        emit_json({"trials": num_trials, "tracking_uri": uri})
    else:
        typer.echo(f"{num_trials} trials in {uri}")


def doctor(
    study: Annotated[
        Path | None, typer.Argument(help="Study file or run directory to check as well.", show_default=False)
    ] = None,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the environment before a long run; exit code 1 if something is missing."""
    from . import build
    from .checkup import examine

    location = build.locate(study, directory) if study else None
    findings: list[dict[str, Any]] = [vars(finding) for finding in examine(location)]
    if as_json:
        emit_json({"ok": all(f["ok"] for f in findings), "findings": findings})
    else:
        for finding in findings:
            typer.echo(f"{'ok     ' if finding['ok'] else 'PROBLEM'} {finding['what']:<14} {finding['detail']}")
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(1)
