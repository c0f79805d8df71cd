"""One job in a worker: a stack of trials from scratch, parents or checkpoint to results.

Killed anywhere and started again, it goes on from its checkpoint and ends with the
same numbers: batches are a function of (seed, step), and all else is in the checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixopt.errors import StudyError
from mixopt.observation import Observation, Role, Status, Trial, losses_and_scores
from mixopt.protocols import Job, TrialResult
from mixopt.seeding import derive
from mixopt.stopping import asked, check
from mixopt.storage import RunDirectory, explained_errors, write_text

from .checkpoint import ModelState, load_states, save_states
from .cost import training_flops
from .growth import fork
from .optim import initial_state
from .tokens import MixtureSampler, TokenShard
from .train import Milestone, ProxyRun, StackTrainer

if TYPE_CHECKING:
    from .evaluators import ProxyEvaluator

_TRAIN_LOSS_POINTS = 2


@dataclass
class _Meter:
    """What one trial used since its last rung."""

    process_seconds: float = 0.0
    wall_seconds: float = 0.0


@dataclass
class StackRun:
    """One attempt at one job: from scratch or checkpoint to results.

    Attributes:
        evaluator: Shapes, data and what to measure.
        job: The stack of trials.
        files: The run directory.
    """

    evaluator: ProxyEvaluator
    job: Job
    files: RunDirectory
    observations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    meters: dict[str, _Meter] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)  # curve points on disk, per trial

    def __post_init__(self) -> None:
        ladder = self.evaluator.ladder
        self.trials = {trial.id: trial for trial in self.job.trials}
        self.model = ladder[self.job.trials[0].fidelity].model
        self.config = self.evaluator.models[self.model]
        self.shards = {name: TokenShard(self.files.tokens / path) for name, path in self.evaluator.shards.items()}
        self.measured = self.evaluator.measured(self.files, self.config)
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
            if trainer.active and (asked() or wall - saved > self.evaluator.checkpoint_seconds):
                trainer.sync()
                self._checkpoint(runs)
                saved = wall
                check()
        self._keep_states(runs)
        return [self._result(run) for run in runs]

    @property
    def _checkpoint_path(self) -> Path:
        return self.files.job(self.job.fingerprint) / "checkpoint.safetensors"

    def _start(self) -> list[ProxyRun]:
        saved = load_states(self._checkpoint_path, self.config)
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
        saved = load_states(self.files.trial(trial.parent) / "state.safetensors", self.config)
        if saved is None:
            raise StudyError(
                f"{trial.id} goes on from {trial.parent}, whose saved state is gone from {self.files.trial(trial.parent)}"
            )
        return fork(saved[0][0], self.config) if trial.parent_kind == "forked" else saved[0][0]

    def _milestone(self, reached: Milestone) -> None:
        trial = self.trials[reached.run.name]
        rung = self.evaluator.ladder[self.rungs[trial.id][reached.step]]
        cpu, wall = time.process_time(), time.monotonic()
        columns = self.evaluator.measure(trial, rung.name, reached.average, self.measured, self.files)
        if not all(np.isfinite(value) for value in columns.values()):
            reached.run.diverged = f"diverged: a loss is not finite at rung {rung.name}"
            return
        losses, scores = losses_and_scores(columns)
        meter = self.meters[trial.id]
        before = self._previous_tokens(trial, rung.name)
        sequences = reached.step * self.config.batch_size
        tail = [value for _, value in reached.run.curve[-_TRAIN_LOSS_POINTS:]]
        observation = Observation(
            trial.id,
            rung.name,
            losses,
            scores,
            flops=training_flops(self.config, rung.num_tokens - before, reached.active_experts),
            process_seconds=meter.process_seconds + time.process_time() - cpu,
            wall_seconds=meter.wall_seconds + time.monotonic() - wall,
            router_loads=reached.router_loads,
            active_experts=reached.active_experts,
            epochs=reached.run.sampler.epochs(sequences),
            train_loss=float(np.mean(tail)) if tail else None,
        )
        self.observations[trial.id].append(observation.to_json())
        # The caller adds this trial's share of the whole step, scoring included: take off what is charged above.
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
                    self.evaluator.index_expert(trial, self.files)

    def _write_curves(self, runs: Sequence[ProxyRun]) -> None:
        for run in runs:
            lines = self._curve_text(run, start=self.written.get(run.name, 0))
            if lines:
                path = self.files.trial(run.name) / "curve.jsonl"
                with explained_errors(path), path.open("a", encoding="utf-8") as file:
                    file.write(lines)

    def _curve_text(self, run: ProxyRun, start: int = 0) -> str:
        self.written[run.name] = len(run.curve)
        points = run.curve[start:]
        tokens = self.config.tokens_per_step
        return "".join(json.dumps({"step": s, "tokens": s * tokens, "loss": round(v, 5)}) + "\n" for s, v in points)
