"""The `mixopt` command: verbs, errors to exit codes, logging. Verbs are in cli_*.py.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 1 failed (work
or environment), 2 wrong use or input, 3 some trials failed, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
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

VERBS: dict[str, Callable[..., None]] = {
    "init": cli_tools.init,
    "check": cli_run.check,
    "run": cli_run.run,
    "status": cli_show.status,
    "predict": cli_show.predict,
    "suggest": cli_external.suggest,
    "tell": cli_external.tell,
    "serve": cli_serve.serve,
    "report": cli_show.report,
    "convert": cli_runs.convert,
    "export": cli_export_mixture.export,
    "export-model": cli_export.export_model,
    "replay": cli_replay.replay,
    "bench": cli_bench.bench,
    "dashboard": cli_tools.dashboard,
    "sync": cli_tools.sync,
    "doctor": cli_tools.doctor,
}
HELP = {"export": cli_export_mixture.help_text()}  # of verbs whose docstring does not say all

for _name, _verb in VERBS.items():
    app.command(_name, help=HELP.get(_name), epilog=epilog(_name))(_verb)


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
