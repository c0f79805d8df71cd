"""Jobs of real small proxies: what goes wrong with one trial, a file or the disk stays there and is named."""

import json
import math
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mixopt import Mixture
from mixopt.errors import ConfigError, ResourceError, StudyError
from mixopt.fidelity import Ladder
from mixopt.observation import Role, Status, Trial
from mixopt.protocols import Job
from mixopt.proxies.checkpoint import load_states, save_states
from mixopt.proxies.evaluators import ProxyEvaluator, resolve_device
from mixopt.proxies.optim import initial_state
from mixopt.proxies.scoring import ScoringRows, score
from mixopt.proxies.tokens import TokenShard
from mixopt.proxies.train import restore_average
from mixopt.storage import RunDirectory, save_array

from .builders import CPU, shards, small_config, write_shard

NAMES = ("a", "b")
STEPS = {"low": 10, "top": 20}


def an_evaluator(root, config=None, *, seconds=math.inf, **fields):
    """An evaluator over two domains and one evaluation set in a run directory."""
    config = config or small_config()
    tokens = RunDirectory(root).tokens
    if not tokens.exists():
        shards(tokens, NAMES)
        write_shard(tokens / "eval-a", num_docs=2, length=20)
    rungs = [(name, "m", 1, steps * config.tokens_per_step, float(steps)) for name, steps in STEPS.items()]
    defaults = {
        "ladder": Ladder.from_flops(rungs, 0.0), "models": {"m": config}, "shards": dict(zip(NAMES, NAMES, strict=True)),
        "eval_shards": {"a": "eval-a"}, "data": {"a": "1", "b": "2", "eval/a": "3"}, "tokenizer": "t",
        "experts_fidelity": "low", "device": "cpu", "checkpoint_seconds": seconds,
    }  # fmt: skip
    return ProxyEvaluator(**{**defaults, **fields})


def a_trial(name, *, fidelity="low", weights=(0.5, 0.5), role=Role.SEARCH, **fields):
    return Trial(name, role, Mixture.normalized(NAMES, weights), fidelity, 0, "test", label="a", **fields)


def a_continued(name, parent):
    return a_trial(name, fidelity="top", parent=parent, parent_kind="continued", parent_fidelity="low")


def evaluate(evaluator, root, *trials, kind="train"):
    job = Job(evaluator.fingerprint(trials, kind), tuple(trials), kind)
    return {result.trial: result for result in evaluator.evaluate(job, root)}


def state_of(root, name):
    return RunDirectory(root).trial(name) / "state.safetensors"


def spoil(path):
    """Put a NaN into a saved state, as a fault of the memory would."""
    ((state,), metadata) = load_states(path)
    state.tensors["weights/norm.gain"][0] = float("nan")
    save_states(path, [state], metadata)


@contextmanager
def files_limited_to(num_bytes):
    """Let the operating system refuse longer files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- divergence ---------------------------------------------------------------


def test_a_trial_that_becomes_nan_is_abandoned_with_its_reason_while_its_stack_goes_on(tmp_path):
    """Checkpoints are written after every step, those of the diverged model included."""
    evaluator = an_evaluator(tmp_path, seconds=0.0)
    evaluate(evaluator, tmp_path, a_trial("first"))
    alone = evaluate(evaluator, tmp_path, a_trial("alone", fidelity="top"))
    spoil(state_of(tmp_path, "first"))
    results = evaluate(evaluator, tmp_path, a_continued("hurt", "first"), a_trial("healthy", fidelity="top"))
    assert results["hurt"].status is Status.ABANDONED
    assert results["hurt"].note.startswith("diverged: loss nan")
    assert results["hurt"].observations == ()
    assert results["healthy"].status is Status.DONE
    for mine, theirs in zip(results["healthy"].observations, alone["alone"].observations, strict=True):
        assert mine.losses["a"] == pytest.approx(theirs.losses["a"], rel=1e-3)  # sums of a stack in another order


def test_a_trial_that_diverges_keeps_its_curve_and_the_rungs_before(tmp_path):
    """A rate far too high, in effect only late: fine at the first rung, lost on the way to the second."""
    config = small_config(learning_rate=5.0, clip=1e9, warmup_steps=12)
    (result,) = evaluate(an_evaluator(tmp_path, config), tmp_path, a_trial("wild", fidelity="top")).values()
    curve = (RunDirectory(tmp_path).trial("wild") / "curve.jsonl").read_text().splitlines()
    assert result.status is Status.ABANDONED
    assert "diverged: loss" in result.note
    assert [o.fidelity for o in result.observations] == ["low"]
    steps = [json.loads(line)["step"] for line in curve]
    assert steps[0] == 10
    assert len(steps) == 2, "the curve is closed where the model was given up"


# --- checkpoints and the disk -------------------------------------------------


def test_continuing_a_trial_of_another_shape_names_both_shapes(tmp_path):
    evaluate(an_evaluator(tmp_path), tmp_path, a_trial("first"))
    wider = an_evaluator(tmp_path, small_config(width=64))
    with pytest.raises(StudyError, match=r"another shape: expected .* got .*; .*remove"):
        evaluate(wider, tmp_path, a_continued("second", "first"))


def test_scoring_an_expert_of_another_shape_names_both_shapes(tmp_path):
    expert = a_trial("expert-a", role=Role.EXPERT)
    evaluate(an_evaluator(tmp_path), tmp_path, expert)
    wider = an_evaluator(tmp_path, small_config(width=64))
    with pytest.raises(StudyError, match=r"another shape: expected .* got .*; .*remove"):
        evaluate(wider, tmp_path, expert, kind="score")


def test_a_full_disk_stops_a_job_with_one_error_and_the_job_goes_on_from_its_last_checkpoint(tmp_path):
    whole = evaluate(an_evaluator(tmp_path / "whole"), tmp_path / "whole", a_trial("t", fidelity="top"))["t"]
    root, trial = tmp_path / "stopped", a_trial("t", fidelity="top")
    evaluator = an_evaluator(root, seconds=0.0)
    job = Job(evaluator.fingerprint([trial], "train"), (trial,), "train")
    checkpoint = RunDirectory(root).job(job.fingerprint) / "checkpoint.safetensors"
    with (
        files_limited_to(20_000),
        pytest.raises(ResourceError, match=r"cannot write .*checkpoint.safetensors.*same comm"),
    ):
        evaluator.evaluate(job, root)
    assert [path.name for path in checkpoint.parent.iterdir()] == []
    (resumed,) = evaluator.evaluate(job, root)
    assert [o.losses for o in resumed.observations] == [o.losses for o in whole.observations]


def test_an_earlier_checkpoint_outlives_a_full_disk(tmp_path):
    path, (first, second) = tmp_path / "checkpoint.safetensors", [initial_state(small_config(), s) for s in range(2)]
    save_states(path, [first], {"attempt": 1})
    with files_limited_to(20_000), pytest.raises(ResourceError, match="raise it and run the same command again"):
        save_states(path, [first, second], {"attempt": 2})
    assert load_states(path)[1] == {"attempt": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_an_array_that_does_not_fit_on_the_disk_is_one_clear_error(tmp_path):
    with files_limited_to(4096), pytest.raises(ResourceError, match=r"cannot write .*a\.npy: File too large"):
        save_array(tmp_path / "a.npy", np.zeros(10_000))
    assert list(tmp_path.iterdir()) == []


# --- experts ------------------------------------------------------------------


def test_only_experts_of_the_rung_that_feeds_the_mde_want_scores(tmp_path):
    low, top = (a_trial(f"expert-{f}", role=Role.EXPERT, fidelity=f) for f in ("low", "top"))
    evaluator = an_evaluator(tmp_path, experts_fidelity="top")
    evaluate(evaluator, tmp_path, low)
    assert evaluator.unscored(top, RunDirectory(tmp_path))
    evaluate(evaluator, tmp_path, top)
    assert not evaluator.unscored(top, RunDirectory(tmp_path))
    assert not evaluator.unscored(low, RunDirectory(tmp_path))


# --- data ---------------------------------------------------------------------


def test_a_mixture_of_a_single_domain_is_trained_and_measured(tmp_path):
    trial = Trial("t", Role.SEARCH, Mixture(("a",), [1.0]), "low", 0, "test")
    result = evaluate(an_evaluator(tmp_path), tmp_path, trial)["t"]
    assert result.status is Status.DONE
    assert result.observations[0].epochs.keys() == {"a"}


def test_sequences_longer_than_any_document_are_packed_and_measured_alike(tmp_path):
    """Documents have 20 tokens: a row of 64 positions holds one, padded, and gives it the loss of a row of 21."""
    config = small_config(sequence_length=64)
    result = evaluate(an_evaluator(tmp_path, config), tmp_path, a_trial("t"))["t"]
    assert result.status is Status.DONE
    model = restore_average(config, load_states(state_of(tmp_path, "t"))[0][0], CPU)
    shard = TokenShard(RunDirectory(tmp_path).tokens / "eval-a")
    assert max(np.diff(shard.offsets)) < config.sequence_length
    short = -score(model, ScoringRows.cut(shard, 21)).mean()
    assert result.observations[0].losses["a"] == pytest.approx(short, rel=1e-5)


# --- devices ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tpu", "mps", "meta", "cuda:x", "cuda:-1", "", "CPU"])
def test_an_unknown_device_is_a_wrong_input(name):
    with pytest.raises(ConfigError, match=rf"run\.device: expected auto, cpu, cuda or cuda:N, got '{name}'"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_is_named():
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ResourceError, match=rf"run\.device: {absent} asked for, but torch sees \d+ GPUs"):
        resolve_device(absent)


def test_known_devices_resolve():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
