"""Arguments and options that several verbs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

StudyArgument = Annotated[Path, typer.Argument(help="Study file (YAML) or run directory.", show_default=False)]
DirectoryOption = Annotated[
    Path | None, typer.Option("--dir", help="Run directory; default runs/<name> in the working directory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow tracking URI; 'none' turns tracking off.")
]


def emit_json(value: Any) -> None:
    """Print plain data as one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
