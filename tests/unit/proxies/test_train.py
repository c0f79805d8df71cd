"""Training: stacked runs equal single ones, resume is exact, divergence stays with its model."""

import math

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
