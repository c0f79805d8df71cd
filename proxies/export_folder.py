"""The folder that `transformers` loads a proxy from: weights, config, tokenizer and card.

Written directly, whole or not at all; a folder that holds anything else is never replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixopt.errors import ConfigError
from mixopt.storage import explained_errors

from .checkpoint import write_tensors
from .export_hf import hf_config, hf_tensors
from .model import ProxyStack
from .tokenizer import TextTokenizer

_FILES = ("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def write_folder(
    model: ProxyStack, folder: Path, *, architecture: str, tokenizer: TextTokenizer, card: str, overwrite: bool = False
) -> None:
    """Write a stack of one as a folder for `transformers`, whole or not at all.

    Args:
        model: The proxy.
        folder: Place to write; made if missing.
        architecture: What `choose_architecture` returned.
        tokenizer: Its tokenizer; the copy puts the separator before every text, as training does.
        card: README.md of the folder.
        overwrite: Replace an earlier export.

    Raises:
        ConfigError: If the folder holds something else, or an export and `overwrite` is not set.
        ResourceError: If it cannot be written.
    """
    config = hf_config(model.config, architecture, tokenizer.separator)
    name = tokenizer.separator_text
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name,
        "eos_token": name,
        "model_max_length": model.config.sequence_length,
        "clean_up_tokenization_spaces": False,
    }
    with _new_folder(folder, overwrite=overwrite) as temporary:
        write_tensors(temporary / "model.safetensors", hf_tensors(model, architecture), {"format": "pt"})
        tokenizer.save_for_inference(temporary / "tokenizer.json")
        for file, content in {"config.json": config, "tokenizer_config.json": about}.items():
            (temporary / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise ConfigError unless an export may be written to a folder."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file; give a folder")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strange = [name for name in found if name not in _FILES]
    if strange:
        raise ConfigError(f"--out: {folder} holds what no export wrote ({strange[0]}); give an empty or new folder")
    if found and not overwrite:
        raise ConfigError(f"--out: {folder} holds an export already; replace it with --force or give another folder")


@contextmanager
def _new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that takes the folder's place if the block succeeds."""
    folder = folder.resolve()
    check_folder(folder, overwrite=overwrite)
    with explained_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        around = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            fresh = around / "new"
            fresh.mkdir()
            yield fresh
            if folder.exists():
                os.replace(folder, around / "old")
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(around, ignore_errors=True)
