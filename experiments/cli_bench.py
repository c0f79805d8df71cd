"""The verb `bench`: our own measurements on a prepared study, resumable.

A bench is a module with `run(study, *, out, seeds, progress) -> dict` (plain data; what
is done already is read from `out`) and `table(result) -> str`, Markdown.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import JsonOption, emit_json

BENCHES = {
    "lr": "bench_lr",
    "moe-vs-dense": "bench_moe",
    "sizes": "bench_sizes",
    "warmstart": "bench_warmstart",
}
QUICKSTART = Path(__file__).parent / "studies" / "quickstart.yaml"


def bench(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHES)}.", show_default=False)],
    study: Annotated[
        Path | None, typer.Argument(help="Study file (YAML) or run directory; default the quickstart.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs per setting.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of results; default runs/bench/NAME.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a choice of ours: learning rate, MoE against dense, sizes, warm starts.

    Each result is kept per setting and seed, so the same command resumes.
    """
    from mixopt.errors import ConfigError, did_you_mean

    if name not in BENCHES:
        raise ConfigError(f"NAME: expected one of {', '.join(BENCHES)}, got {name!r}{did_you_mean(name, BENCHES)}")
    module: Any = importlib.import_module(f".{BENCHES[name]}", __package__)
    result: dict[str, Any] = module.run(
        study or QUICKSTART, out=out or Path("runs/bench") / name, seeds=seeds, progress=_say
    )
    if as_json:
        emit_json(result)
    else:
        typer.echo(module.table(result))


def _say(line: str) -> None:
    typer.echo(line, err=True)
