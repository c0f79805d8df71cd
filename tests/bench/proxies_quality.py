"""Validation bits per byte after equal CPU time: our stack, our single model and OLMoE of the same size.

Uniform mixture of a prepared study's domains, mean over their held-out texts. All have
the same data order per seed, batch, warm-up, clip, weight decay and averaging. Both sides
are treated alike: of the same learning rates each takes the best of one model on the
first seed; the stack takes that of our single model. Results are kept per contender and
seed, so an interrupted run goes on.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peers import PeerTrainer, build

from mixopt import Mixture
from mixopt.experiments import build as composition
from mixopt.proxies.optim import initial_state
from mixopt.proxies.scoring import score
from mixopt.proxies.tokens import MixtureSampler, TokenShard
from mixopt.proxies.train import ProxyRun, StackTrainer, restore_average
from mixopt.storage import RunDirectory, read_json, write_json

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
_END = 10**9  # no run comes this far; the clock ends it


class Ground:
    """A prepared study: text to train on and held-out text of its domains."""

    def __init__(self, study):
        location = composition.locate(Path(study))
        header, evaluator = composition.prepare(location)
        files = RunDirectory(location.directory)
        self.config = evaluator.models[header.ladder.target.model]
        self.domains = header.domain_names
        self.shards = {name: TokenShard(files.tokens / folder) for name, folder in evaluator.shards.items()}
        sets = evaluator.measured(files, self.config)
        self.rows = {name: sets[name].rows for name in self.domains}
        self.factors = {s.name: s.bits_per_byte for s in header.eval_sets if s.name in self.rows}

    def sampler(self, seed):
        mixture, length = Mixture.uniform(self.domains), self.config.sequence_length
        return MixtureSampler(self.shards, mixture, seed=seed, sequence_length=length)

    def bits_per_byte(self, nats):
        """Mean over the domains of a function from rows to token losses."""
        return float(np.mean([self.factors[n] * nats(rows).mean(dtype=np.float64) for n, rows in self.rows.items()]))


def train_ours(ground, seeds, seconds, rate):
    """Train a stack of one model per seed for so long per model; return bits per byte and steps of each."""
    config = replace(ground.config, learning_rate=rate)
    runs = [ProxyRun(str(s), ground.sampler(s), (_END,), initial_state(config, s)) for s in seeds]
    trainer, start = StackTrainer(config, runs, torch.device("cpu")), time.process_time()
    while time.process_time() - start < seconds * len(seeds):
        trainer.advance(lambda milestone: None)
    trainer.sync()
    averages = [restore_average(config, run.state, torch.device("cpu")) for run in runs]
    scores = [ground.bits_per_byte(lambda rows, model=model: -score(model, rows)[0]) for model in averages]
    return [{"bits_per_byte": value, "steps": run.state.step} for value, run in zip(scores, runs, strict=True)]


def train_peer(ground, seed, seconds, rate):
    torch.manual_seed(seed)
    trainer = PeerTrainer(build("olmoe", "grouped_mm", ground.config), ground.config, rate=rate, average=True)
    sampler, start = ground.sampler(seed), time.process_time()
    while time.process_time() - start < seconds:
        trainer.step(torch.from_numpy(sampler.batch(trainer.steps, ground.config.batch_size)))
    with torch.no_grad():
        for parameter, average in zip(trainer.model.parameters(), trainer.average, strict=True):
            parameter.copy_(average)
        value = ground.bits_per_byte(lambda rows: _peer_losses(trainer.model, rows))
    return {"bits_per_byte": value, "steps": trainer.steps}


def _peer_losses(model, rows, at_once=16):
    parts = []
    for start in range(0, len(rows.inputs), at_once):
        here = slice(start, start + at_once)
        logprobs = model(input_ids=torch.from_numpy(rows.inputs[here])).logits.log_softmax(-1)
        losses = -logprobs.gather(-1, torch.from_numpy(rows.targets[here]).unsqueeze(-1)).squeeze(-1)
        parts.append(losses.numpy()[rows.mask[here]])
    return np.concatenate(parts)


def compare(study, *, out, seconds, seeds):
    """Return the rows of the table; trains what is not in the folder `out` yet."""
    ground, folder = Ground(study), Path(out)

    def kept(name, make):
        path = folder / f"{name}-{seconds:g}s.json"
        if not path.exists():
            write_json(path, make())
        return read_json(path)

    numbers = range(100, 100 + seeds)

    def at_best_rate(name, train):
        """Return the rate chosen and the results of all seeds at it."""
        found = {r: kept(f"{name}-{r:g}-{numbers[0]}", lambda r=r: train(numbers[0], r)) for r in RATES}
        best = min(found, key=lambda r: found[r]["bits_per_byte"])
        return best, [kept(f"{name}-{best:g}-{s}", lambda s=s: train(s, best)) for s in numbers]

    own, singles = at_best_rate("single", lambda s, r: train_ours(ground, [s], seconds, r)[0])
    rate, peer = at_best_rate("olmoe", lambda s, r: train_peer(ground, s, seconds, r))
    ours = kept(f"stack-of-{seeds}-{own:g}", lambda: train_ours(ground, numbers, seconds, own))
    return [
        _row(f"our single model at rate {own:g}", ours, singles, 0.0),
        _row(f"OLMoE at rate {rate:g}", ours, peer, 0.1),
    ]


def _row(name, ours, rivals, goal):
    gains = [rival["bits_per_byte"] - own["bits_per_byte"] for own, rival in zip(ours, rivals, strict=True)]
    error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
    levels = [np.mean([r["bits_per_byte"] for r in results]) for results in (ours, rivals)]
    steps = [np.mean([r["steps"] for r in results]) for results in (ours, rivals)]
    note = f"{levels[0]:.3f} against {levels[1]:.3f}; steps {steps[0]:,.0f} against {steps[1]:,.0f}; ± {error:.3f}"
    gain = float(np.mean(gains))
    what = f"bits per byte below {name}, stack of {len(gains)}"
    return {
        "what": what,
        "value": round(gain, 4),
        "goal": goal,
        "floor": goal,
        "met": "goal" if gain > goal else "missed",
        "note": note,
    }
