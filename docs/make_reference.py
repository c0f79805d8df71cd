"""Print docs/reference.md: its frame is reference.in.md, its tables come from the code.

python docs/make_reference.py > docs/reference.md

Fields come from the pydantic models, verbs from the signatures behind the command line,
records and names from docstrings. Nothing is described here a second time.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import mixopt
import mixopt.study
from mixopt import config
from mixopt.experiments.cli import app
from mixopt.study import Header

FRAME = Path(__file__).with_name("reference.in.md")
RECORDS = (
    Header,
    mixopt.Domain,
    mixopt.EvalSet,
    mixopt.Fidelity,
    mixopt.Trial,
    mixopt.Observation,
    mixopt.Recommendation,
    mixopt.Contender,
)
# What scripts use besides `import mixopt`, by module.
MODULES = {
    "mixopt.runs": ("RunsTable", "read_runs", "read_mixtures", "write_runs", "concat"),
    "mixopt.layouts": ("read_regmix", "read_olmix", "write_regmix", "write_olmix"),
    "mixopt.experiments.from_runs": ("predict_from_runs", "RunsPrediction"),
    "mixopt.experiments.external": ("ExternalStudy", "Suggestion"),
    "mixopt.search.replay": ("Case", "replay", "play", "Replay", "Decision", "score", "Score"),
    "mixopt.experiments.benchmarks": (
        "Benchmark", "ReplayJob", "run_all", "Result", "summarize", "pooled", "paired", "Paired",
    ),
    "mixopt.search.hard": ("HardCase", "hard_case", "twisted"),
}  # fmt: skip
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
_BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


def reference() -> str:
    """Return the whole page."""
    text = FRAME.read_text(encoding="utf-8")
    parts = {
        "fields": fields, "external": external, "verbs": verbs, "events": events, "records": records,
        "names": names, "modules": modules,
    }  # fmt: skip
    for name, make in parts.items():
        text = text.replace(f"<!-- {name} -->", make())
    return text


# --- the study file ----------------------------------------------------------


def fields() -> str:
    """Return one table per section of the study file."""
    return "\n\n".join(
        _section(f"`{path}`" if path else "Top level", path, model) for path, model in sections(config.StudyConfig)
    )


def external() -> str:
    """Return the tables of an external study that other studies do not have."""
    found = [(path, model) for path, model in sections(config.ExternalConfig) if model.__name__.startswith("External")]
    return "\n\n".join(
        _section(f"External: `{path}`" if path else "External: top level", path, model) for path, model in found
    )


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (dotted place, model) of a section and of all sections inside it."""
    yield path, model
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        for inner, suffix in _models_in(field.annotation):
            yield from sections(inner, place + suffix)


def _models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    suffix = {dict: ".<name>", list: "[]"}.get(get_origin(annotation) or type(None), "")
    for part in get_args(annotation):
        for model, deeper in _models_in(part):
            yield model, suffix + deeper


def _section(title: str, path: str, model: type[BaseModel]) -> str:
    rows = [
        (f"`{path}.{name}`" if path else f"`{name}`", _type(field), _default(field), _description(field))
        for name, field in model.model_fields.items()
    ]
    return f"### {title}\n\n{inspect.getdoc(model)}\n\n" + _table(("field", "type", "default", "meaning"), rows)


def _description(field: FieldInfo) -> str:
    inner = next(_models_in(field.annotation), None)
    return field.description or (f"see its table: {_summary(inner[0])}" if inner else "")


def _type(field: FieldInfo) -> str:
    limits = []
    for item in field.metadata:
        attribute, word = _BOUNDS.get(type(item), ("", ""))
        if attribute:
            limits.append(f"{word} {getattr(item, attribute):g}")
    return ", ".join([_words(field.annotation), " and ".join(limits)] if limits else [_words(field.annotation)])


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(parts[0])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in parts if part is not type(None))
    if origin is list:
        return "list" if isinstance(parts[0], type) and parts[0] is str else f"list ({_words(parts[0])})"
    if origin is tuple:
        return "[" + ", ".join(_words(part) for part in parts) + "]"
    if origin is dict:
        return f"mapping (name: {_words(parts[1])})"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _WORDS.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see its table"
    if value is None:
        return "none"
    plain = [v.model_dump(exclude_none=True) if isinstance(v, BaseModel) else v for v in _listed(value)]
    shown = plain if isinstance(value, list) else plain[0]
    text = yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, width=10_000)
    return "`" + text.removesuffix("...\n").strip() + "`"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# --- the command line --------------------------------------------------------


def verbs() -> str:
    """Return one table per verb, after that of the command itself."""
    assert app.registered_callback is not None
    parts = [_verb("mixopt", app.registered_callback.callback, "Options before the verb.")]
    parts += [_verb(f"mixopt {command.name}", command.callback) for command in app.registered_commands]
    return "\n\n".join(parts)


def _verb(title: str, function: Any, text: str = "") -> str:
    hints = get_type_hints(function, include_extras=True)
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])[:2]
        required = parameter.default is inspect.Parameter.empty
        if isinstance(info, typer.models.ArgumentInfo):
            shown = f"`{name.upper()}`" if required else f"`[{name.upper()}]`"
        else:
            # Inside Annotated, typer keeps the first declaration where a default would stand.
            declared = (info.default, *(info.param_decls or ()))
            shown = ", ".join(f"`{declaration}`" for declaration in declared)
        default = parameter.default if isinstance(parameter.default, str | int | float | Path) else None
        shows = default not in (None, "") and kind is not bool
        value = "required" if required else f"`{default}`" if shows else ""
        rows.append((shown, value, str(info.help)))
    return f"### `{title}`\n\n{text or inspect.getdoc(function)}\n\n" + _table(("argument", "default", "meaning"), rows)


# --- records, events and names -----------------------------------------------


def events() -> str:
    """Return the events of the ledger, from the module that folds them."""
    lines = re.findall(r"^    (\w+) +(.+)$", mixopt.study.__doc__ or "", flags=re.MULTILINE)
    return _table(("`type`", "records"), [(f"`{name}`", text) for name, text in lines])


def records() -> str:
    """Return one table per record, from the docstrings of the dataclasses."""
    return "\n\n".join(
        f"### {record.__name__}\n\n{_summary(record)}\n\n" + _table(("field", "meaning"), _attributes(record))
        for record in RECORDS
    )


def _attributes(record: type) -> list[tuple[str, str]]:
    block = (inspect.getdoc(record) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    found: list[tuple[str, str]] = []
    for line in textwrap.dedent(block).splitlines():
        if line.startswith(" "):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            name, _, text = line.partition(": ")
            found.append((f"`{name}`", text))
    assert len(found) == len(dataclasses.fields(record)), f"{record.__name__}: an attribute is not described"
    return found


def names() -> str:
    """Return what `import mixopt` offers."""
    return _table(("name", "is"), [(f"`{name}`", _summary(getattr(mixopt, name))) for name in mixopt.__all__])


def modules() -> str:
    """Return what other modules offer to scripts."""
    offered = [
        (f"`{module}.{name}`", _summary(getattr(importlib.import_module(module), name)))
        for module, listed in MODULES.items()
        for name in listed
    ]
    return _table(("name", "is"), offered)


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Keep Markdown from reading a bar or, outside code, a placeholder such as <name>."""
    pieces = text.replace("|", "\\|").split("`")
    return "`".join(piece if i % 2 else piece.replace("<", "&lt;") for i, piece in enumerate(pieces))


if __name__ == "__main__":
    print(reference(), end="")
