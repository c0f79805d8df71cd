"""Small real studies: three domains cut from the built-in corpus, seconds to train."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import yaml

DOMAINS = ("python", "speeches", "spanish")
TWO_SIZES = [
    {"name": "small", "tokens": 4_000},
    {"name": "small-long", "tokens": 8_000},
    {"name": "deep", "tokens": 8_000, "depth": 2},
]


def write_text(folder, num_docs=60):
    """Copy some documents of three built-in domains and one target as jsonl."""
    corpus = Path(str(files("mixopt.experiments") / "corpus"))
    folder.mkdir(parents=True)
    for name in (*DOMAINS, "jargon"):
        source = corpus / ("targets" if name == "jargon" else "train") / f"{name}.parquet"
        texts = pq.read_table(source, columns=["text"])["text"].to_pylist()[:num_docs]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts), encoding="utf-8")


def small_study(root, **changes):
    """Write text and a study file; return the file's path."""
    if not (root / "text").exists():
        write_text(root / "text")
    config = {
        "name": "small",
        "domains": {name: {"path": f"text/{name}.jsonl", "text": "body"} for name in DOMAINS},
        "eval_sets": {"jargon": {"path": "text/jargon.jsonl", "text": "body"}},
        "objective": {"expression": "mean(loss/jargon, loss/python)", "unit": "bits_per_byte"},
        "tokenizer": {"vocab_size": 320},
        "proxy": {"width": 32, "head_dim": 16, "experts": 4, "sequence_length": 32},
        "ladder": [{"name": "low", "tokens": 4_000}, {"name": "top", "tokens": 12_000}],
        "evaluation": {"tokens": 512, "domain_tokens": 256},
        "search": {"batch_size": 3, "budget": 4},
        "validation": {"seeds": 2},
        "run": {"executor": "serial", "tracking_uri": "none", "checkpoint_seconds": 0.2},
        **changes,
    }
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def start_mixopt(*arguments, cwd):
    """Start the command line in a process group of its own."""
    command = [sys.executable, "-m", "mixopt.experiments.cli", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)


_TIMES = ("time", "crc", "process_seconds", "wall_seconds")


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def ledger(directory):
    """Return a ledger's events without times; what ends in any order within a batch is sorted."""
    events = [_without_times(json.loads(line)) for line in (directory / "study.jsonl").read_text().splitlines()]
    ordered = [e for e in events if e["type"] not in ("result", "status")]
    loose = [e for e in events if e["type"] in ("result", "status")]
    return ordered, sorted(loose, key=lambda e: json.dumps(e, sort_keys=True))
