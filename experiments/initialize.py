"""Look at a folder of text and write a study file for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mixopt.errors import ConfigError

_KINDS = (".txt", ".jsonl", ".json", ".parquet")
_ROWS_AT_ONCE = 64
_USUAL_COLUMNS = ("text", "content", "body", "raw_content", "document")


@dataclass(frozen=True)
class FoundDomain:
    """A file or folder that can be a domain.

    Attributes:
        name: Made from the file's name.
        path: File or folder.
        text: Its text column.
        num_bytes: Size on disk.
        files: Its files of text, sorted.
    """

    name: str
    path: Path
    text: str
    num_bytes: int
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Draft:
    """What a study file proposes besides the domains.

    Attributes:
        top_tokens: Training tokens of the top rung; the others have a half and a quarter.
        budget: Of the search, in runs at the top rung.
        holdout: {domain: share held out} where the default is too little to measure on.
        notes: {domain: words on its size}.
    """

    top_tokens: int = 512_000
    budget: int = 12
    vocab_size: int = 1024
    holdout: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def find_domains(folder: Path) -> list[FoundDomain]:
    """Return one domain per file or sub-folder of text, by name.

    Raises:
        ConfigError: If there is none, or two would get the same name.
    """
    if not folder.is_dir():
        raise ConfigError(f"no folder at {folder}; give a folder with one file or sub-folder of text per domain")
    found = []
    for child in sorted(folder.iterdir()):
        files = sorted(
            p for p in (child.rglob("*") if child.is_dir() else [child]) if p.suffix in _KINDS and p.is_file()
        )
        if files and not child.name.startswith("."):
            name = usable_name(child.stem if child.is_file() else child.name, "domain")
            first = next((path for path in files if path.stat().st_size), files[0])
            size = sum(path.stat().st_size for path in files)
            found.append(FoundDomain(name, child, _text_column(first), size, tuple(files)))
    if not found:
        raise ConfigError(
            f"{folder} holds no txt, jsonl, json or parquet file; put one file or sub-folder per domain there"
        )
    names = [domain.name for domain in found]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ConfigError(f"{folder}: two files or folders would both be the domain {double!r}; rename one")
    return found


def usable_name(text: str, otherwise: str = "study") -> str:
    """Return what of `text` can be a name of a domain or study, or `otherwise` if nothing can."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._") or otherwise


def _text_column(path: Path) -> str:
    if path.suffix == ".txt" or path.stat().st_size == 0:
        return "text"
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(path)
        except Exception as error:  # pyarrow raises its own kinds
            raise ConfigError(f"cannot read {path}: {error}; repair or remove it") from error
        columns = [field.name for field in schema if str(field.type) in ("string", "large_string")]
    else:
        columns = _json_columns(path)
    if not columns:
        raise ConfigError(f"{path} has no column of text; add one or remove the file")
    return next((name for name in _USUAL_COLUMNS if name in columns), columns[0])


def parquet_texts(path: Path, column: str, num_bytes: int) -> tuple[tuple[str, ...], float]:
    """Return documents of about the first `num_bytes`, and the file's rows per row read."""
    import pyarrow.parquet as pq

    documents: list[str] = []
    num_rows = used = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
            texts = [text for text in batch.column(0).to_pylist() if text and text.strip()]
            documents += texts
            num_rows += batch.num_rows
            used += sum(map(len, texts))
            if used >= num_bytes:
                break
        return tuple(documents), file.metadata.num_rows / max(num_rows, 1)


def _json_columns(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline() if path.suffix == ".jsonl" else file.read())
    except ValueError as error:
        raise ConfigError(f"cannot read {path}: {error}; repair or remove it") from error
    row = row[0] if isinstance(row, list) and row else row
    if not isinstance(row, dict):
        raise ConfigError(f"{path}: expected one JSON object per row, got {type(row).__name__}")
    strings = {name: value for name, value in row.items() if isinstance(value, str)}
    return sorted(strings, key=lambda name: -len(strings[name]))


def study_yaml(name: str, domains: list[FoundDomain], folder: Path, *, draft: Draft | None = None) -> str:
    """Return a commented study file; paths are relative to `folder` where they can be."""
    draft = draft or Draft()
    lines = [
        f"# A study of {len(domains)} domains. See what it will do:  mixopt check THIS_FILE",
        f"name: {_yaml_text(name)}",
        "seed: 0",
        "",
        "domains:                     # the order is the order of the weights",
    ]
    lines += [_domain_line(domain, folder, draft) for domain in domains]
    targets = ", ".join(f"loss/{domain.name}" for domain in domains)
    lines += [
        "",
        "# Text that is no training domain, for example what the final model is for:",
        "# eval_sets:",
        "#   target: {path: target.jsonl, text: text}",
        "eval_sets: {}",
        "",
        "objective:                   # minimized; use loss/target here once you have a target",
        f"  expression: mean({targets})",
        "  unit: bits_per_byte",
        "",
        "# constraints:               # e.g. no domain seen more than 4 times by the final model",
        "#   target_tokens: 2_000_000_000",
        "#   max_epochs: 4",
        "#   bounds: {NAME: [0.05, 0.5]}",
        "",
        f"tokenizer: {{vocab_size: {draft.vocab_size}}}",
        "proxy: {depth: 1}            # one dial for the proxy's size",
        "ladder:                      # what is trained; a run passes all rungs below its own",
        f"  - {{name: low, tokens: {draft.top_tokens // 4:_}}}",
        f"  - {{name: mid, tokens: {draft.top_tokens // 2:_}}}",
        f"  - {{name: top, tokens: {draft.top_tokens:_}}}",
        f"search: {{batch_size: 6, budget: {draft.budget}}}   # budget in runs at the top rung",
        "validation: {baselines: [natural, uniform], seeds: 2}",
        "run: {workers: 2}",
    ]
    return "\n".join(lines) + "\n"


def _domain_line(domain: FoundDomain, folder: Path, draft: Draft) -> str:
    path = domain.path.resolve()
    shown = path.relative_to(folder.resolve()) if path.is_relative_to(folder.resolve()) else path
    fields = [f"path: {json.dumps(str(shown))}"]
    if domain.text != "text":
        fields.append(f"text: {json.dumps(domain.text)}")
    if domain.name in draft.holdout:
        fields.append(f"holdout: {draft.holdout[domain.name]:g}")
    note = draft.notes.get(domain.name, f"{domain.num_bytes / 1e6:.1f} MB")
    return f"  {_yaml_text(domain.name)}: {{{', '.join(fields)}}}   # {note}"


def _yaml_text(text: str) -> str:
    """Return text as YAML reads it back: names such as 2024 or no need quotes."""
    return text if yaml.safe_load(text) == text else json.dumps(text)
