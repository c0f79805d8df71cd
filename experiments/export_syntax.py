"""Mixtures as YAML, JSON, CSV and shell, and the way from a mixture to the text of any format."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mixopt.errors import ConfigError

from .export import Blend, Share, Source
from .export_python import PYTHON
from .export_words import decimal, header, visible

NO_COMMENT = ("json", "csv")


def render(blend: Blend) -> str:
    """Return a mixture as the text of a file in its format.

    Raises:
        ConfigError: If the format cannot hold it.
    """
    body = {**PYTHON, **_SYNTAX}[blend.form.name](blend)
    return body if blend.form.name in NO_COMMENT else "\n".join([*header(blend), "", body])


def megatron(blend: Blend) -> str:
    """Return a shell array of weights and prefixes."""
    pairs = "".join(
        f"  {decimal(blend.weights[share.name])} {shlex.quote(share.beside('_text_document'))}\n"
        for share in blend.used
    )
    return f"""# source this file, then: torchrun pretrain_gpt.py "${{DATA_ARGS[@]}}" ...
DATA_ARGS=(
  --data-path
{pairs})
"""


def olmo_core(blend: Blend) -> str:
    """Return the sources of a `SourceMixtureList`."""
    sources = [
        {
            "source_name": share.name,
            "target_ratio": blend.weights[share.name],
            "paths": [share.beside("/*.npy")],
            "max_repetition_ratio": _repetition(blend, share),
            "max_source_fraction": 1.0,
        }
        for share in blend.used
    ]
    return _yaml({"sources": sources})


def olmix(blend: Blend) -> str:
    """Return the section `mix` of an olmix file."""
    entries = {
        share.name: {"weight": blend.weights[share.name], "repetition_factor": _repetition(blend, share)}
        for share in blend.used
    }
    return _yaml({"mix": entries})


def regmix(blend: Blend) -> str:
    """Return the data of RegMix's training script."""
    keys = {share.name: f"the_pile_{share.name}" for share in blend.used}
    listed = list(keys.values())
    doubled = [f"train_{a} also begins train_{b}" for a in listed for b in listed if a != b and b.startswith(a)]
    text = "".join(f"# WRONG FILES: {visible(line)}, and takes its files too; rename them.\n" for line in doubled)
    train = {f"train_{key}": blend.weights[name] for name, key in keys.items()}
    return text + _yaml({"train": train, "valid": {f"valid_{key}": 1.0 for key in listed}})


def llama_factory(blend: Blend) -> str:
    """Return the data arguments of LLaMA-Factory, and the entries of dataset_info.json as a comment."""
    names = [share.name for share in blend.used]
    wrong = [name for name in names if "," in name or name != name.strip()]
    if wrong:
        raise ConfigError(f"llama-factory separates names by commas and cannot hold {wrong[0]!r}; rename the domain")
    entries = [f"#   {json.dumps(share.name)}: {json.dumps(_llama_entry(share))}," for share in blend.used]
    arguments = {
        "stage": "pt",
        "dataset": ",".join(names),
        "mix_strategy": "interleave_over",
        "interleave_probs": ",".join(decimal(blend.weights[name]) for name in names),
    }
    return "\n".join(["# Entries of dataset_info.json:", *entries, _yaml(arguments)])


def axolotl(blend: Blend) -> str:
    """Return the section `datasets` of axolotl, each with the part of its rows to keep."""
    return _yaml({"datasets": [_axolotl_entry(share) | {"weight": blend.weights[share.name]} for share in blend.used]})


def nanotron(blend: Blend) -> str:
    """Return one data stage of nanotron."""
    dataset = {
        "dataset_folder": [share.beside("-tokenized") for share in blend.used],
        "dataset_weights": [blend.weights[share.name] for share in blend.used],
    }
    data = {"dataset": dataset, "num_loading_workers": 1, "seed": 42}
    return _yaml({"data_stages": [{"name": "mixture", "start_training_step": 1, "data": data}]})


def as_json(blend: Blend) -> str:
    """Return everything known of the mixture as JSON."""
    return json.dumps(facts(blend), indent=2, ensure_ascii=False) + "\n"


def as_yaml(blend: Blend) -> str:
    """Return everything known of the mixture as YAML."""
    return _yaml(facts(blend))


def as_csv(blend: Blend) -> str:
    """Return a row per domain; a cell is empty where the study does not know."""
    documents = blend.documents or {}
    rows = [("domain", "token_share", "document_share", "num_tokens", "num_docs", "text")]
    for share in blend.shares:
        counts = str(share.num_tokens or ""), str(share.num_docs or "")
        in_documents = decimal(documents[share.name]) if documents else ""
        rows.append((share.name, decimal(blend.tokens[share.name]), in_documents, *counts, share.text))
    # Python 3.11 leaves a lone carriage return unquoted.
    unsafe = any("\r" in cell for row in rows for cell in row)
    buffer = io.StringIO()
    style: type[csv.Dialect] = csv.unix_dialect if unsafe else csv.excel
    csv.writer(buffer, style, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def facts(blend: Blend) -> dict[str, Any]:
    """Return a mixture with all domains, also those without weight, as plain data."""
    return {
        "weights": blend.tokens,
        "unit": "tokens",
        "document_shares": blend.documents,
        "study": blend.study,
        "origin": blend.origin,
        "tokenizer": blend.tokenizer or None,
        "domains": {
            share.name: {
                "num_tokens": share.num_tokens or None,
                "num_docs": share.num_docs or None,
                "text": share.text or None,
            }
            for share in blend.shares
        },
    }


_SYNTAX: Mapping[str, Callable[[Blend], str]] = {
    "megatron": megatron,
    "olmo-core": olmo_core,
    "olmix": olmix,
    "regmix": regmix,
    "llama-factory": llama_factory,
    "axolotl": axolotl,
    "nanotron": nanotron,
    "json": as_json,
    "yaml": as_yaml,
    "csv": as_csv,
}


# --- pieces ------------------------------------------------------------------


def _yaml(data: Any) -> str:
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    # Some line ends of Unicode are written as they are, and read back as a space.
    return text if text.replace("\n", "").isprintable() else yaml.safe_dump(data, sort_keys=False)


def _repetition(blend: Blend, share: Share) -> float:
    """Return how often a domain must be read at the target, rounded up; 1 if nothing says it."""
    return max(1.0, math.ceil(100 * (blend.epochs(share) or 0.0)) / 100)


def _llama_entry(share: Share) -> dict[str, Any]:
    source = share.source or Source.at(f"{share.name}.jsonl")
    if source.files is None:
        place: dict[str, Any] = {"hf_hub_url": source.loader, "split": source.split}
        place |= {"subset": source.config} if source.config else {}
    else:  # a file or a folder; it takes no pattern
        folder = source.path if source.path and Path(source.path).is_dir() else source.folder
        place = {"file_name": source.path if source.is_file else folder}
    return {**place, "columns": {"prompt": source.column}}


def _axolotl_entry(share: Share) -> dict[str, Any]:
    source = share.source or Source.at(f"{share.name}.jsonl")
    if source.files is None:
        place: dict[str, Any] = {"path": source.loader, **({"name": source.config} if source.config else {})}
    else:  # several files are data_files, and path a folder that exists
        several = {} if source.is_file else {"data_files": source.files}
        place = {"path": source.path if source.is_file else source.folder, **several, "ds_type": source.loader}
    return {**place, "split": source.split, "type": "completion", "field": source.column}
