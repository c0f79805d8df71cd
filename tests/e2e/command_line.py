"""The command line as a person uses it, in this process (fast) or in one of its own."""

import contextlib
import io
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from unittest.mock import patch

import yaml

from mixopt.experiments import cli


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def data(self):
        return json.loads(self.out)


def mixopt(*words):
    """Run a verb in this process; a traceback that reaches the user is raised here."""
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger("mixopt")
    before = logger.handlers, logger.propagate, logger.level
    code = 0
    try:
        with (
            patch.object(sys, "argv", ["mixopt", *map(str, words)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        logger.handlers, logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
    return Answer(code, out.getvalue(), err.getvalue())


def mixopt_process(*words, cwd, seconds=60):
    """Run a verb as a shell does."""
    command = [sys.executable, "-m", "mixopt.experiments.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=seconds, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


WORDS = {
    "web": [
        "the",
        "page",
        "shows",
        "a",
        "link",
        "to",
        "another",
        "page",
        "with",
        "news",
        "of",
        "the",
        "day",
        "and",
        "a",
        "list",
        "of",
        "shops",
    ],
    "code": [
        "def",
        "return",
        "for",
        "in",
        "range",
        "print",
        "self",
        "value",
        "list",
        "None",
        "if",
        "else",
        "import",
        "class",
        "yield",
    ],
}


def documents(domain, num_docs=60):
    """Short documents of one domain, all different."""
    words = WORDS[domain]
    return [" ".join(words[(i * (j + 1) + j) % len(words)] for j in range(30)) + f" {i}" for i in range(num_docs)]


def write_text(folder):
    """Two small domains as jsonl files; returns {name: path}."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in WORDS}
    for name, path in paths.items():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(name)), encoding="utf-8")
    return paths


def small_study(folder, **fields):
    """A study of seconds on two small domains, in a YAML file."""
    paths = write_text(folder / "text")
    study = {
        "name": "small",
        "domains": {name: {"path": str(path), "holdout": 0.2} for name, path in paths.items()},
        "objective": {"expression": "mean(loss/web, loss/code)", "unit": "nats_per_token"},
        "tokenizer": {"vocab_size": 300},
        "proxy": {"width": 32, "head_dim": 16, "experts": 2, "top_k": 1, "sequence_length": 32, "batch_size": 2},
        "ladder": [{"name": "low", "tokens": 256}, {"name": "top", "tokens": 512}],
        "evaluation": {"tokens": 128, "domain_tokens": 128},
        "search": {"optimizer": "sobol", "batch_size": 2, "budget": 2},
        "validation": {"baselines": ["uniform"], "seeds": 1},
        "run": {"executor": "serial", "workers": 1, "tracking_uri": "none"},
        **fields,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path
