"""`ProxyEvaluator`: trials in, observations out, inside a worker.

Plain data goes in and comes out; weights, curves and expert scores stay in the run
directory. A job is a stack of trials of one shape. It is idempotent: killed anywhere
and started again, it goes on from its checkpoint and ends with the same numbers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixopt.errors import ResourceError, StudyError
from mixopt.fidelity import Ladder
from mixopt.identity import fingerprint
from mixopt.observation import Observation, Role, Status, Trial
from mixopt.protocols import Job, TrialResult
from mixopt.seeding import derive
from mixopt.storage import RunDirectory, atomic_path, read_json, write_json, write_text

from .checkpoint import ModelState, load_states, save_states
from .config import ProxyConfig
from .cost import training_flops
from .model import ProxyStack
from .optim import initial_state
from .scoring import ScoringRows, score
from .tokens import MixtureSampler, TokenShard
from .train import Milestone, ProxyRun, StackTrainer, restore_average

_TRAIN_LOSS_POINTS = 2


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ResourceError: If it is not there. Never run on a GPU so far.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(f"run.device: unknown device {name!r}; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            f"run.device: {name} asked for, but torch sees no GPU; use device: auto or install a CUDA build"
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
        experts_fidelity: Rung at which experts' token log-probabilities are kept.
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

    def score_key(self, trial: Trial, eval_set: str) -> str:
        """Return the content hash of an expert's scores on one evaluation set."""
        return fingerprint({"expert": self._identity(trial), "eval": self.data[f"eval/{eval_set}"]})

    def evaluate(self, job: Job, directory: Path) -> Sequence[TrialResult]:
        """Train (or only score) the job's trials and return what they showed."""
        self.limit_threads()
        files = RunDirectory(directory)
        if job.kind == "score":
            return [self._score_expert(trial, files) for trial in job.trials]
        return _StackRun(self, job, files).train()

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
            "scores": trial.role is Role.EXPERT and self.experts_fidelity,
        }

    def _score_expert(self, trial: Trial, files: RunDirectory) -> TrialResult:
        config = self.models[self.ladder[trial.fidelity].model]
        saved = load_states(files.trial(trial.id) / "state.safetensors")
        if saved is None:
            raise StudyError(
                f"the weights of {trial.id} are gone from {files.trial(trial.id)}; remove the run directory and start again"
            )
        average = restore_average(config, saved[0][0], self.resolved_device)
        losses = self.measure(trial, average, self.rows(files, config), files)
        self.index_expert(trial, files)
        return TrialResult(trial.id, Status.DONE, (Observation(trial.id, trial.fidelity, losses),))

    def index_expert(self, trial: Trial, files: RunDirectory) -> None:
        """Write down where a finished expert's scores lie."""
        scores = {name: self.score_key(trial, name) for name in self.eval_shards}
        write_json(files.expert(trial.label), {"trial": trial.id, "fidelity": trial.fidelity, "scores": scores})

    def unscored(self, trial: Trial, files: RunDirectory) -> bool:
        """Whether a finished expert lacks its scores on some evaluation set."""
        index = read_json(files.expert(trial.label)) or {"scores": {}}
        keys = {name: self.score_key(trial, name) for name in self.eval_shards}
        return any(index["scores"].get(n) != key or not files.score(key).exists() for n, key in keys.items())

    def rows(self, files: RunDirectory, config: ProxyConfig) -> dict[str, ScoringRows]:
        """Cut every evaluation set for a model shape."""
        return {
            name: ScoringRows.cut(TokenShard(files.tokens / folder), config.sequence_length)
            for name, folder in self.eval_shards.items()
        }

    def measure(
        self,
        trial: Trial,
        average: ProxyStack,
        rows: Mapping[str, ScoringRows],
        files: RunDirectory,
        *,
        keep: bool = True,
    ) -> dict[str, float]:
        """Return {evaluation set: nats per token}; keep an expert's token log-probabilities."""
        losses = {}
        for name, cut in rows.items():
            logprobs = score(average, cut)[0]
            losses[name] = -float(logprobs.mean(dtype=np.float64))
            if keep and trial.role is Role.EXPERT:
                with atomic_path(files.score(self.score_key(trial, name))) as temporary:
                    np.save(temporary, logprobs)
        return losses


@dataclass
class _Meter:
    """What one trial used since its last rung."""

    process_seconds: float = 0.0
    wall_seconds: float = 0.0


@dataclass
class _StackRun:
    """One attempt at one job: from scratch or checkpoint to results."""

    evaluator: ProxyEvaluator
    job: Job
    files: RunDirectory
    observations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    meters: dict[str, _Meter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ladder = self.evaluator.ladder
        self.trials = {trial.id: trial for trial in self.job.trials}
        self.model = ladder[self.job.trials[0].fidelity].model
        self.config = self.evaluator.models[self.model]
        self.shards = {name: TokenShard(self.files.tokens / path) for name, path in self.evaluator.shards.items()}
        self.rows = self.evaluator.rows(self.files, self.config)
        self.rungs = {
            trial.id: {
                self.config.num_steps(rung.num_tokens): rung.name
                for rung in ladder.nested(trial.fidelity, above=trial.parent_fidelity)
            }
            for trial in self.job.trials
        }

    def train(self) -> list[TrialResult]:
        """Train to the end and return one result per trial."""
        runs = self._start()
        trainer = StackTrainer(self.config, runs, self.evaluator.resolved_device)
        cpu, wall = time.process_time(), time.monotonic()
        saved = wall
        while trainer.active:
            alive = list(trainer.runs)
            trainer.advance(self._milestone)
            now_cpu, now_wall = time.process_time(), time.monotonic()
            for run in alive:
                self.meters[run.name].process_seconds += (now_cpu - cpu) / len(alive)
                self.meters[run.name].wall_seconds += (now_wall - wall) / len(alive)
            cpu, wall = now_cpu, now_wall
            self._write_curves(alive)
            if trainer.active and wall - saved > self.evaluator.checkpoint_seconds:
                trainer.sync()
                self._checkpoint(runs)
                saved = wall
        self._keep_states(runs)
        self._checkpoint_path.unlink(missing_ok=True)
        return [self._result(run) for run in runs]

    @property
    def _checkpoint_path(self) -> Path:
        return self.files.job(self.job.fingerprint) / "checkpoint.safetensors"

    def _start(self) -> list[ProxyRun]:
        saved = load_states(self._checkpoint_path)
        states, memory = saved if saved else ([self._first_state(t) for t in self.job.trials], {})
        self.observations = memory.get("observations", {name: [] for name in self.trials})
        self.meters = {name: _Meter(*memory.get("meters", {}).get(name, ())) for name in self.trials}
        runs = []
        for trial, state in zip(self.job.trials, states, strict=True):
            # A continuation draws on its root's data stream, so it is the same run, further.
            sampler = MixtureSampler(
                self.shards, trial.mixture, seed=trial.seed, sequence_length=self.config.sequence_length
            )
            run = ProxyRun(trial.id, sampler, tuple(self.rungs[trial.id]), state)
            known = memory.get("runs", {}).get(trial.id)
            if known:
                run.losses, run.curve, run.diverged = (
                    known["losses"],
                    [(s, v) for s, v in known["curve"]],
                    known["diverged"],
                )
            runs.append(run)
            write_text(self.files.trial(trial.id) / "curve.jsonl", self._curve_text(run))
        return runs

    def _first_state(self, trial: Trial) -> ModelState:
        if trial.parent is None:
            return initial_state(self.config, derive(trial.seed, "init"))
        saved = load_states(self.files.trial(trial.parent) / "state.safetensors")
        if saved is None:
            raise StudyError(
                f"{trial.id} continues {trial.parent}, whose saved state is gone from {self.files.trial(trial.parent)}"
            )
        return saved[0][0]

    def _milestone(self, reached: Milestone) -> None:
        trial = self.trials[reached.run.name]
        rung = self.evaluator.ladder[self.rungs[trial.id][reached.step]]
        cpu, wall = time.process_time(), time.monotonic()
        keep = rung.name == self.evaluator.experts_fidelity
        losses = self.evaluator.measure(trial, reached.average, self.rows, self.files, keep=keep)
        if not all(np.isfinite(value) for value in losses.values()):
            reached.run.diverged = f"diverged: a loss is not finite at rung {rung.name}"
            return
        meter = self.meters[trial.id]
        before = self._previous_tokens(trial, rung.name)
        sequences = reached.step * self.config.batch_size
        tail = [value for _, value in reached.run.curve[-_TRAIN_LOSS_POINTS:]]
        observation = Observation(
            trial.id,
            rung.name,
            losses,
            flops=training_flops(self.config, rung.num_tokens - before),
            process_seconds=meter.process_seconds + time.process_time() - cpu,
            wall_seconds=meter.wall_seconds + time.monotonic() - wall,
            router_loads=reached.router_loads,
            epochs=reached.run.sampler.epochs(sequences),
            train_loss=float(np.mean(tail)) if tail else None,
        )
        self.observations[trial.id].append(observation.to_json())
        self.meters[trial.id] = _Meter(cpu - time.process_time(), wall - time.monotonic())

    def _previous_tokens(self, trial: Trial, rung: str) -> int:
        passed = [r for r in self.evaluator.ladder.nested(rung) if r.name != rung]
        return passed[-1].num_tokens if passed else 0

    def _result(self, run: ProxyRun) -> TrialResult:
        found = tuple(Observation.from_json(item) for item in self.observations[run.name])
        status = Status.ABANDONED if run.diverged else Status.DONE
        return TrialResult(run.name, status, found, run.diverged)

    def _checkpoint(self, runs: Sequence[ProxyRun]) -> None:
        memory = {
            "observations": self.observations,
            "meters": {name: [m.process_seconds, m.wall_seconds] for name, m in self.meters.items()},
            "runs": {r.name: {"losses": r.losses, "curve": r.curve, "diverged": r.diverged} for r in runs},
        }
        save_states(self._checkpoint_path, [run.state for run in runs], memory)

    def _keep_states(self, runs: Sequence[ProxyRun]) -> None:
        for run in runs:
            if not run.diverged:
                trial = self.trials[run.name]
                save_states(self.files.trial(trial.id) / "state.safetensors", [run.state], {"trial": trial.id})
                if trial.role is Role.EXPERT:
                    scores = {name: self.evaluator.score_key(trial, name) for name in self.evaluator.eval_shards}
                    write_json(
                        self.files.expert(trial.label),
                        {"trial": trial.id, "fidelity": trial.fidelity, "scores": scores},
                    )

    def _write_curves(self, runs: Sequence[ProxyRun]) -> None:
        for run in runs:
            lines = self._curve_text(run, start=self._written.get(run.name, 0))
            if lines:
                with (self.files.trial(run.name) / "curve.jsonl").open("a", encoding="utf-8") as file:
                    file.write(lines)

    @cached_property
    def _written(self) -> dict[str, int]:
        return {}

    def _curve_text(self, run: ProxyRun, start: int = 0) -> str:
        self._written[run.name] = len(run.curve)
        points = run.curve[start:]
        tokens = self.config.tokens_per_step
        return "".join(json.dumps({"step": s, "tokens": s * tokens, "loss": round(v, 5)}) + "\n" for s, v in points)
