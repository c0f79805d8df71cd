"""Training: stacked runs equal single ones, resume is exact, divergence stays with its model."""

import itertools
import math

import pytest
import torch

from mixopt.proxies.checkpoint import load_states, save_states
from mixopt.proxies.train import StackTrainer

from .builders import CPU, make_run, shards, small_config, train

# Batched and single matrix products sum in different orders; a hundred steps amplify that.
STACK_TOLERANCE = 1e-3


def _losses(run):
    return [value for _, value in run.curve]


def _final(run):
    return {name: tensor for name, tensor in run.state.tensors.items() if name.startswith("ema/")}


def test_stacked_and_single_runs_agree(tmp_path):
    config, data = small_config(clip=0.1), shards(tmp_path)
    together = [make_run(str(s), data, config, seed=s, milestones=[50]) for s in range(3)]
    train(StackTrainer(config, together, CPU))
    for s in range(3):
        alone = make_run(str(s), data, config, seed=s, milestones=[50])
        train(StackTrainer(config, [alone], CPU))
        assert math.isclose(_losses(alone)[-1], _losses(together[s])[-1], rel_tol=STACK_TOLERANCE)


def test_training_learns(tmp_path):
    config, data = small_config(), shards(tmp_path)
    run = make_run("a", data, config, seed=0, milestones=[100])
    train(StackTrainer(config, [run], CPU))
    assert _losses(run)[-1] < 0.7 * _losses(run)[0]


def test_interrupted_training_ends_bit_identical(tmp_path):
    config, data = small_config(), shards(tmp_path / "data")
    whole = [make_run(str(s), data, config, seed=s, milestones=[40]) for s in range(2)]
    train(StackTrainer(config, whole, CPU))

    halves = [make_run(str(s), data, config, seed=s, milestones=[40]) for s in range(2)]
    trainer = StackTrainer(config, halves, CPU)
    for _ in range(17):
        trainer.advance(lambda milestone: None)
    trainer.sync()
    save_states(tmp_path / "checkpoint.safetensors", [run.state for run in halves], {})
    states, _ = load_states(tmp_path / "checkpoint.safetensors")
    for run, state in zip(halves, states, strict=True):
        run.state = state
    train(StackTrainer(config, halves, CPU))
    for first, second in zip(whole, halves, strict=True):
        assert all(torch.equal(_final(first)[name], tensor) for name, tensor in _final(second).items())
        assert _losses(first) == _losses(second)


def test_models_of_different_length_leave_the_stack_at_their_end(tmp_path):
    config, data = small_config(), shards(tmp_path)
    runs = [
        make_run("short", data, config, seed=0, milestones=[10]),
        make_run("long", data, config, seed=1, milestones=[10, 30]),
    ]
    seen = []
    train(StackTrainer(config, runs, CPU), lambda milestone: seen.append((milestone.run.name, milestone.step)))
    assert seen == [("short", 10), ("long", 10), ("long", 30)]
    assert [run.state.step for run in runs] == [10, 30]


def test_a_run_can_be_continued_to_a_higher_rung(tmp_path):
    config, data = small_config(), shards(tmp_path)
    whole = make_run("whole", data, config, seed=0, milestones=[30])
    train(StackTrainer(config, [whole], CPU))
    first = make_run("first", data, config, seed=0, milestones=[12])
    train(StackTrainer(config, [first], CPU))
    second = make_run("second", data, config, seed=0, milestones=[30])
    second.state = first.state
    train(StackTrainer(config, [second], CPU))
    assert all(torch.equal(_final(whole)[name], tensor) for name, tensor in _final(second).items())


def test_a_diverging_model_leaves_its_neighbors_alone(tmp_path):
    config, data = small_config(), shards(tmp_path)

    def pair():
        return [make_run(str(s), data, config, seed=s, milestones=[30]) for s in range(2)]

    healthy, hurt = pair(), pair()
    train(StackTrainer(config, healthy, CPU))
    hurt[0].state.tensors["weights/embedding"][0, 0] = float("nan")
    hurt[0].state.tensors["weights/norm.gain"][0] = float("nan")
    train(StackTrainer(config, hurt, CPU))
    assert "diverged" in hurt[0].diverged
    assert hurt[0].state.step < 30
    assert math.isclose(_losses(hurt[1])[-1], _losses(healthy[1])[-1], rel_tol=STACK_TOLERANCE)


def test_a_model_that_diverges_early_closes_its_curve_at_its_last_finite_loss(tmp_path):
    """Hurt after five steps, long before the first regular point of the curve."""
    config, data = small_config(), shards(tmp_path)
    healthy = make_run("healthy", data, config, seed=0, milestones=[5])
    train(StackTrainer(config, [healthy], CPU))
    hurt = make_run("hurt", data, config, seed=0, milestones=[30])
    trainer = StackTrainer(config, [hurt], CPU)
    for _ in range(5):
        trainer.advance(lambda milestone: None)
    trainer.sync()
    hurt.state.tensors["weights/norm.gain"][0] = float("nan")
    train(StackTrainer(config, [hurt], CPU))
    assert hurt.diverged.startswith("diverged: loss nan")
    assert hurt.curve == healthy.curve
    assert hurt.curve[-1][0] == 5


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_every_point_of_a_curve_is_a_number(tmp_path, rate):
    config = small_config(learning_rate=rate, warmup_steps=3)
    run = make_run("a", shards(tmp_path), config, seed=0, milestones=[100])
    train(StackTrainer(config, [run], CPU))
    assert run.diverged.startswith("diverged: loss")
    assert run.curve
    assert all(math.isfinite(value) for value in _losses(run))
    assert run.losses == []


def test_a_model_without_a_single_finite_loss_has_an_empty_curve(tmp_path):
    config = small_config()
    run = make_run("a", shards(tmp_path), config, seed=0, milestones=[30])
    run.state.tensors["weights/norm.gain"][0] = float("nan")
    train(StackTrainer(config, [run], CPU))
    assert "at step 1" in run.diverged
    assert run.curve == []


def test_damaged_checkpoint_is_treated_as_absent(tmp_path):
    config, data = small_config(), shards(tmp_path / "data")
    path = tmp_path / "state.safetensors"
    save_states(path, [make_run("a", data, config, seed=0, milestones=[1]).state], {"note": 1})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert load_states(path) is None
    path.write_bytes(bytes(content[:100]))
    assert load_states(path) is None


@pytest.mark.parametrize("router", ["topk", "dense"])  # the penalty of relu is not linear in the batch
def test_a_batch_in_parts_equals_the_whole_batch(tmp_path, router):
    data = shards(tmp_path)

    def trained(accumulate):
        config = small_config(router=router, batch_size=4, accumulate=accumulate)
        run = make_run("a", data, config, seed=0, milestones=[10])
        train(StackTrainer(config, [run], CPU))
        return run

    whole, parts = trained(1), trained(4)
    assert math.isclose(_losses(whole)[-1], _losses(parts)[-1], rel_tol=STACK_TOLERANCE)
    if router == "topk":
        assert torch.equal(whole.state.tensors["buffers/0.bias"], parts.state.tensors["buffers/0.bias"])


@pytest.mark.parametrize("router", ["topk", "relu"])
def test_activations_computed_twice_change_nothing(tmp_path, router):
    data = shards(tmp_path)

    def trained(again):
        config = small_config(depth=2, router=router, activation_checkpointing=again)
        run = make_run("a", data, config, seed=0, milestones=[10])
        train(StackTrainer(config, [run], CPU))
        return run.state.tensors

    kept, again = trained(False), trained(True)
    # Tokens are counted twice, in the shares that are read from them it cancels.
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items() if not name.startswith("counts/"))


def test_bfloat16_trains_about_as_well_with_weights_in_float32(tmp_path):
    data = shards(tmp_path)

    def trained(dtype):
        config = small_config(dtype=dtype)
        run = make_run("a", data, config, seed=0, milestones=[30])
        train(StackTrainer(config, [run], CPU))
        return run

    full, half = trained("float32"), trained("bfloat16")
    assert all(half.state.tensors[name].dtype == tensor.dtype for name, tensor in full.state.tensors.items())
    assert _losses(half) != _losses(full)
    # Eight bits of mantissa: a few percent of a loss that has fallen from 4.2 nats.
    assert math.isclose(_losses(half)[-1], _losses(full)[-1], rel_tol=0.1)


def test_a_decayed_run_ends_at_rest(tmp_path):
    config = small_config(decay=0.5)
    run = make_run("a", shards(tmp_path), config, seed=0, milestones=[40])
    trainer = StackTrainer(config, [run], CPU)
    weights = []
    while trainer.active:
        trainer.advance(lambda milestone: None)
        trainer.sync()
        weights.append(run.state.tensors["weights/embedding"].clone())
    moved = [float((b - a).norm()) for a, b in itertools.pairwise(weights)]
    assert moved[-1] < 0.15 * moved[18]


def test_a_decayed_run_resumes_bit_identical(tmp_path):
    config, data = small_config(decay=0.3), shards(tmp_path)
    whole = make_run("whole", data, config, seed=0, milestones=[20])
    train(StackTrainer(config, [whole], CPU))
    half = make_run("half", data, config, seed=0, milestones=[20])
    trainer = StackTrainer(config, [half], CPU)
    for _ in range(17):
        trainer.advance(lambda milestone: None)
    trainer.sync()
    train(StackTrainer(config, [half], CPU))
    assert all(torch.equal(_final(whole)[name], tensor) for name, tensor in _final(half).items())
