"""The verb `export`: a mixture in the syntax of a trainer."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixopt.errors import ConfigError

from .cli_options import DirectoryOption, JsonOption, StudyArgument, emit_json
from .export_formats import FORMATS, find_format, find_unit

if TYPE_CHECKING:
    from mixopt.mixture import Mixture
    from mixopt.study import Study

logger = logging.getLogger(__name__)

STDOUT = Path("-")


def export(
    study: StudyArgument,
    form: Annotated[str, typer.Option("--format", help="hf, megatron, ... as listed below.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default stdout.")] = None,
    mixture: Annotated[
        str | None, typer.Option("--mixture", help="DOMAIN=WEIGHT,... of tokens instead of the recommendation.")
    ] = None,
    trial: Annotated[str | None, typer.Option("--trial", help="The mixture of this trial instead.")] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit", help="tokens or documents, where a trainer takes both; default as its samples usually are."
        ),
    ] = None,
    directory: DirectoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the recommended mixture in the syntax of a trainer, in the unit that it samples.

    Weights are shares of tokens. For trainers that draw documents they are converted with the
    mean tokens per document of each domain; the file says so.
    """
    wanted = find_format(form)
    chosen_unit = find_unit(wanted, unit)
    _check(out, mixture, trial)
    from mixopt.storage import write_text
    from mixopt.study import Study

    from . import build
    from .export import make_blend
    from .export_syntax import render
    from .export_words import notes

    location = build.locate(study, directory)
    ledger = Study(location.directory)
    chosen, origin = _chosen(ledger, mixture, trial)
    blend = make_blend(
        wanted, chosen_unit, chosen,
        domains=ledger.header.domains, config=location.study, origin=origin, tokenizer=ledger.header.tokenizer,
    )  # fmt: skip
    text = render(blend)
    if blend.fallback:
        logger.warning("unit tokens wanted=documents reason=the study knows no document counts")
    if out not in (None, STDOUT):
        write_text(out, text)
    if as_json:
        emit_json(
            {
                "format": wanted.name,
                "unit": "tokens" if blend.fallback else blend.unit,
                "weights": blend.weights,
                "token_shares": blend.tokens,
                "left_out": list(blend.left_out),
                "origin": origin,
                "notes": notes(blend),
                "out": out and str(out),
                "text": text,
            }
        )
    elif out in (None, STDOUT):
        typer.echo(text, nl=False)
    else:
        typer.echo(f"wrote {out}: {wanted.summary}. {notes(blend)[0]}")


def help_text() -> str:
    """Return the help of the verb: its docstring, and every format with one line."""
    width = max(map(len, FORMATS))
    listed = [f"{form.name.ljust(width)}  {form.summary}" for form in FORMATS.values()]
    # The backspace keeps typer from joining the lines.
    return "\n\n".join([inspect.getdoc(export) or "", "\n".join(["\b", "Formats:", *listed])])


def _check(out: Path | None, mixture: str | None, trial: str | None) -> None:
    if mixture is not None and trial is not None:
        raise ConfigError("--mixture and --trial both name a mixture; drop one of them")
    if out not in (None, STDOUT) and out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; name a file in it")


def _chosen(study: Study, mixture: str | None, trial: str | None) -> tuple[Mixture, str]:
    """Return the mixture to export, and where it comes from in words.

    Raises:
        ConfigError: If nothing is recommended yet.
    """
    from mixopt.mixture import Mixture

    if mixture is not None:
        return Mixture.parse(mixture, study.header.domain_names), "given by --mixture"
    if trial is not None:
        return study.trial(trial).mixture, f"that of trial {trial}"
    if study.recommendation is None:
        raise ConfigError(
            f"{study.files.path} has no recommended mixture yet; finish the study (mixopt run, or mixopt tell for an "
            "external one), or name a mixture with --mixture or --trial"
        )
    return study.recommendation.mixture, f"recommended by {study.recommendation.recommended_by}"
