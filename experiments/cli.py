"""The `mixopt` command: verbs, errors to exit codes, logging. Verbs are in cli_*.py.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 1 failed (work
or environment), 2 wrong use or input, 3 some trials failed, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

import mixopt
from mixopt.errors import ConfigError, MixoptError, MixtureError

from . import (
    cli_bench,
    cli_export,
    cli_export_mixture,
    cli_external,
    cli_replay,
    cli_run,
    cli_runs,
    cli_serve,
    cli_show,
    cli_tools,
)
from .cli_examples import epilog

app = typer.Typer(
    name="mixopt",
    help="Find the data mixture for training a language model, with the least compute, and know how sure to be.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: mixopt init FOLDER. Completion in your shell: mixopt --install-completion.",
)

app.command("init", epilog=epilog("init"))(cli_tools.init)
app.command("check", epilog=epilog("check"))(cli_run.check)
app.command("run", epilog=epilog("run"))(cli_run.run)
app.command("status", epilog=epilog("status"))(cli_show.status)
app.command("predict", epilog=epilog("predict"))(cli_show.predict)
app.command("suggest", epilog=epilog("suggest"))(cli_external.suggest)
app.command("tell", epilog=epilog("tell"))(cli_external.tell)
app.command("serve", epilog=epilog("serve"))(cli_serve.serve)
app.command("report", epilog=epilog("report"))(cli_show.report)
app.command("convert", epilog=epilog("convert"))(cli_runs.convert)
app.command("export", help=cli_export_mixture.help_text(), epilog=epilog("export"))(cli_export_mixture.export)
app.command("export-model", epilog=epilog("export-model"))(cli_export.export_model)
app.command("replay", epilog=epilog("replay"))(cli_replay.replay)
app.command("bench", epilog=epilog("bench"))(cli_bench.bench)
app.command("dashboard", epilog=epilog("dashboard"))(cli_tools.dashboard)
app.command("sync", epilog=epilog("sync"))(cli_tools.sync)
app.command("doctor", epilog=epilog("doctor"))(cli_tools.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mixopt {mixopt.__version__}")
        raise typer.Exit


@app.callback()
def configure(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="More log lines; twice for debugging.")
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Set up logging for every verb."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("mixopt")
    root.handlers, root.propagate = [handler], False
    root.setLevel(level)


def main() -> None:
    """Run the command line; one clear message and an exit code for every known error."""
    try:
        app()
    except (ConfigError, MixtureError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except MixoptError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
