"""`ProxyEvaluator`: trials in, observations out, inside a worker.

Plain data goes in and comes out; weights, curves and expert scores stay in the run
directory. A job is a stack of trials of one shape. It is idempotent: killed anywhere
and started again, it goes on from its checkpoint and ends with the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.choices import measure
from mixopt.errors import ConfigError, ResourceError, StudyError
from mixopt.fidelity import Ladder
from mixopt.identity import fingerprint
from mixopt.observation import Observation, Role, Status, Trial, losses_and_scores
from mixopt.passages import Passages, save_passages
from mixopt.protocols import Job, TrialResult
from mixopt.scores import ScoreCard, save_scores
from mixopt.scores_folder import sound_scores
from mixopt.storage import RunDirectory, read_json, write_json

from .checkpoint import load_states
from .config import ProxyConfig
from .jobs import StackRun
from .model import ProxyStack
from .questions import open_shard, passages
from .scoring import ScoringRows, score
from .train import restore_average


@dataclass(frozen=True, eq=False)
class MeasuredSet:
    """An evaluation set as a model shape reads it.

    Attributes:
        rows: Its tokens, cut into rows.
        passages: Where documents or options begin, and which are right.
    """

    rows: ScoringRows
    passages: Passages

    def columns(self, logprobs: NDArray[np.float32]) -> dict[str, float]:
        """Return {column: value} of (T,) token log-probabilities: the loss and, of a task, the accuracy."""
        loss_column, *score_column = self.passages.columns
        counted = self.passages.counted
        loss = -float((logprobs if counted is None else logprobs[counted]).mean(dtype=np.float64))
        if not score_column:
            return {loss_column: loss}
        return {loss_column: loss, score_column[0]: float(measure(logprobs, self.passages).accuracy[0])}


_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: If the name is none of these.
        ResourceError: If it is not there. Never run on a GPU so far.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not _DEVICE.fullmatch(name):
        raise ConfigError(f"run.device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"run.device: {name} asked for, but torch sees {torch.cuda.device_count()} GPUs; "
            "use device: auto or install a CUDA build"
        )
    return device


@dataclass(frozen=True)
class ProxyEvaluator:
    """Trains and scores stacks of proxies.

    Attributes:
        ladder: Rungs; `Fidelity.model` names an entry of `models`.
        models: {model name: shape and recipe}.
        shards: {domain: folder name under tokens/}.
        eval_shards: {evaluation set: folder name under tokens/}.
        data: {domain or "eval/" + set: content fingerprint}.
        tokenizer: Fingerprint of the tokenizer.
        experts_fidelity: Rung whose experts' token log-probabilities feed the MDE; they are kept at every rung.
        device: `auto`, `cpu` or `cuda`.
        threads: Torch threads of the worker.
        checkpoint_seconds: Wall time between checkpoints of a running stack.
    """

    ladder: Ladder
    models: Mapping[str, ProxyConfig]
    shards: Mapping[str, str]
    eval_shards: Mapping[str, str]
    data: Mapping[str, str]
    tokenizer: str
    experts_fidelity: str
    device: str = "auto"
    threads: int = 1
    checkpoint_seconds: float = 20.0

    def fingerprint(self, trials: Sequence[Trial], kind: str = "train") -> str:
        """Return the content hash of a job; where and how fast it runs is not part of it."""
        eval_data = [self.data[f"eval/{name}"] for name in self.eval_shards]
        return fingerprint({"kind": kind, "stack": [self._identity(trial) for trial in trials], "eval": eval_data})

    def score_key(self, trial: Trial, rung: str, eval_set: str) -> str:
        """Return the content hash of an expert's scores at a rung on one evaluation set."""
        return fingerprint({"expert": self._expert(trial, rung), "eval": self.data[f"eval/{eval_set}"]})

    def evaluate(self, job: Job, directory: Path) -> Sequence[TrialResult]:
        """Train (or only score) the job's trials and return what they showed."""
        self.limit_threads()
        files = RunDirectory(directory)
        if job.kind == "score":
            return [self._score_expert(trial, files) for trial in job.trials]
        return StackRun(self, job, files).train()

    def inputs(self, job: Job, files: RunDirectory) -> list[str]:
        """Return the files and folders of the run directory that a job reads, as relative paths."""
        used = {name for trial in job.trials for name, weight in trial.mixture.as_dict().items() if weight > 0}
        training = [] if job.kind == "score" else [self.shards[name] for name in sorted(used)]
        tokens = [files.tokens / folder for folder in [*training, *self.eval_shards.values()]]
        begun = [trial.id for trial in job.trials] if job.kind == "score" else [t.parent for t in job.trials]
        states = [files.trial(name) / "state.safetensors" for name in begun if name]
        checkpoint = files.job(job.fingerprint) / "checkpoint.safetensors"
        return [path.relative_to(files.path).as_posix() for path in [*tokens, *states, checkpoint]]

    def limit_threads(self) -> None:
        """Keep torch in this process to the threads of one worker, on a CPU."""
        if self.resolved_device.type == "cpu":
            torch.set_num_threads(self.threads)

    @cached_property
    def resolved_device(self) -> torch.device:
        """The torch device of this process."""
        return resolve_device(self.device)

    def _identity(self, trial: Trial) -> dict[str, Any]:
        rung = self.ladder[trial.fidelity]
        weights = {name: weight for name, weight in trial.mixture.as_dict().items() if weight > 0}
        return {
            "model": self.models[rung.model].to_json(),
            "tokens": rung.num_tokens,
            "rungs": [[r.name, r.num_tokens] for r in self.ladder.nested(trial.fidelity, above=trial.parent_fidelity)],
            "weights": weights,
            "data": {name: self.data[name] for name in weights},
            "tokenizer": self.tokenizer,
            "seed": trial.seed,
            "parent": [trial.parent, trial.parent_fidelity],
            "scores": trial.role is Role.EXPERT,
        }

    def _expert(self, trial: Trial, rung: str) -> str:
        return fingerprint({"run": self._identity(trial), "tokens": self.ladder[rung].num_tokens})

    def _score_expert(self, trial: Trial, files: RunDirectory) -> TrialResult:
        config = self.models[self.ladder[trial.fidelity].model]
        saved = load_states(files.trial(trial.id) / "state.safetensors", config)
        if saved is None:
            raise StudyError(
                f"the weights of {trial.id} are gone from {files.trial(trial.id)}; remove the run directory and start again"
            )
        average = restore_average(config, saved[0][0], self.resolved_device)
        columns = self.measure(trial, trial.fidelity, average, self.measured(files, config), files)
        self.index_expert(trial, files)
        observation = Observation(trial.id, trial.fidelity, *losses_and_scores(columns))
        return TrialResult(trial.id, Status.DONE, (observation,))

    def index_expert(self, trial: Trial, files: RunDirectory) -> None:
        """Write down where a finished expert's scores lie."""
        scores = {name: self.score_key(trial, trial.fidelity, name) for name in self.eval_shards}
        write_json(files.expert(trial.label), {"trial": trial.id, "fidelity": trial.fidelity, "scores": scores})

    def unscored(self, trial: Trial, files: RunDirectory) -> bool:
        """Whether a finished expert lacks its scores on some evaluation set, or has damaged ones.

        Those of another rung than `experts_fidelity` do not feed the MDE and need none.
        """
        if trial.fidelity != self.experts_fidelity:
            return False
        index = read_json(files.expert(trial.label)) or {"scores": {}}
        keys = {name: self.score_key(trial, trial.fidelity, name) for name in self.eval_shards}
        return any(index["scores"].get(n) != key or not sound_scores(files.scores, key) for n, key in keys.items())

    def measured(self, files: RunDirectory, config: ProxyConfig) -> dict[str, MeasuredSet]:
        """Return {evaluation set: as a model shape reads it}."""
        shards = {name: open_shard(files.tokens / folder) for name, folder in self.eval_shards.items()}
        return {
            name: MeasuredSet(ScoringRows.cut(shard, config.sequence_length), passages(name, shard))
            for name, shard in shards.items()
        }

    def measure(
        self, trial: Trial, rung: str, average: ProxyStack, measured: Mapping[str, MeasuredSet], files: RunDirectory
    ) -> dict[str, float]:
        """Return {column: value} of a model; keep an expert's token log-probabilities."""
        columns: dict[str, float] = {}
        for name, on in measured.items():
            logprobs = score(average, on.rows)[0]
            columns |= on.columns(logprobs)
            if trial.role is Role.EXPERT and np.all(np.isfinite(logprobs)):
                card = self._card(trial, rung, on.passages)
                save_passages(files.scores, on.passages)
                save_scores(files.scores, self.score_key(trial, rung, name), logprobs, card)
        return columns

    def _card(self, trial: Trial, rung: str, passages: Passages) -> ScoreCard:
        expert, kind = self._expert(trial, rung), passages.kind
        return ScoreCard(
            trial.label, trial.id, rung, trial.seed, expert, self.tokenizer, passages.name, passages.fingerprint, kind
        )
