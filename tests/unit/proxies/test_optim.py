"""The optimizers: Muon evens out singular values per matrix, rates follow the run, states hold what is needed."""

import math

import pytest
import torch

from mixopt.errors import ConfigError
from mixopt.proxies.checkpoint import load_states, save_states
from mixopt.proxies.model import ProxyStack
from mixopt.proxies.muon import is_hidden_matrix, orthogonalize
from mixopt.proxies.optim import initial_state
from mixopt.proxies.train import StackTrainer

from .builders import CPU, make_run, shards, small_config, train

# Batched and single matrix products sum in different orders; the steps amplify that.
STACK_TOLERANCE = 1e-3


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 64, 256), (8, 256, 64), (8, 32, 64)])
def test_singular_values_of_the_update_are_near_one(shape):
    values = torch.linalg.svdvals(orthogonalize(_random(*shape)))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.2


def test_singular_values_of_a_square_matrix_are_near_one_unless_they_were_near_zero():
    matrices = _random(8, 64, 64)
    before, after = torch.linalg.svdvals(matrices), torch.linalg.svdvals(orthogonalize(matrices))
    kept = before > 0.02 * before.amax(-1, keepdim=True)
    assert float(after[kept].min()) > 0.6
    assert float(after.max()) < 1.205  # the peak of the polynomial


def test_singular_vectors_are_kept():
    matrix = _random(1, 16, 48)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.mT @ orthogonalize(matrix) @ right.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-4, rtol=0)


def test_permuting_rows_permutes_the_update():
    matrix, order = _random(1, 24, 40), torch.randperm(24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalize(matrix[:, order]), orthogonalize(matrix)[:, order], atol=1e-5, rtol=0)


def test_the_update_does_not_depend_on_the_scale_of_the_gradient():
    matrix = _random(1, 16, 24)
    torch.testing.assert_close(orthogonalize(1e-3 * matrix), orthogonalize(matrix), atol=1e-3, rtol=0)


def test_a_transposed_matrix_has_the_transposed_update():
    matrix = _random(1, 16, 24)
    torch.testing.assert_close(orthogonalize(matrix.mT), orthogonalize(matrix).mT)


def test_all_matrices_together_equal_a_loop():
    matrices = _random(5, 16, 24)
    loop = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), loop, atol=1e-5, rtol=0)


def test_a_matrix_without_gradient_stays():
    assert not orthogonalize(torch.zeros(1, 4, 6)).any()


def test_muon_moves_hidden_matrices_alone():
    stack = ProxyStack(small_config(), 1)
    hidden = {name.rsplit(".", 1)[-1] for name, p in stack.named_parameters() if is_hidden_matrix(name, p)}
    others = {name.rsplit(".", 1)[-1] for name, p in stack.named_parameters() if not is_hidden_matrix(name, p)}
    assert hidden == {"qkv", "out", "up", "down"}
    assert others == {"embedding", "gain", "router"}


def test_an_update_has_the_size_that_moonlight_states(tmp_path):
    """0.2 sqrt(max(rows, columns)) times singular values near 1: entries of 0.2 times the rate on average."""
    config = small_config(optimizer="muon", weight_decay=0.0, warmup_steps=1, learning_rate=0.01)
    run = make_run("a", shards(tmp_path), config, seed=0, milestones=[2])
    trainer = StackTrainer(config, [run], CPU)
    # The second step is the first in which all gradients flow: some matrices start at zero.
    trainer.advance(lambda milestone: None)
    trainer.sync()
    name = "weights/blocks.0.shared.up"
    before = run.state.tensors[name]
    trainer.advance(lambda milestone: None)
    moved = (run.state.tensors[name] - before).square().mean().sqrt().item()
    assert moved == pytest.approx(0.2 * 0.01, rel=0.2)


def test_weight_decay_of_muon_is_decoupled(tmp_path):
    """With a zero gradient a matrix shrinks by rate x decay and nothing else."""
    config = small_config(optimizer="muon", weight_decay=0.5, warmup_steps=1, learning_rate=0.01)
    run = make_run("a", shards(tmp_path), config, seed=0, milestones=[1])
    name = "weights/blocks.0.shared.up"  # `down` starts at zero, so nothing flows back to `up` in the first step
    before = run.state.tensors[name].clone()
    train(StackTrainer(config, [run], CPU))
    torch.testing.assert_close(run.state.tensors[name], before * (1 - 0.01 * 0.5))


def test_a_state_holds_only_what_its_optimizer_needs():
    def kinds(config):
        return {name.split("/")[0] for name in initial_state(config, 0).tensors}

    muon = initial_state(small_config(optimizer="muon"), 0).tensors
    assert "momentum" not in kinds(small_config())
    assert "momentum/blocks.0.attention.qkv" in muon
    assert "first/blocks.0.attention.qkv" not in muon
    assert "first/embedding" in muon


def test_stacked_and_single_runs_agree_with_muon(tmp_path):
    config, data = small_config(optimizer="muon"), shards(tmp_path)
    together = [make_run(str(s), data, config, seed=s, milestones=[30]) for s in range(2)]
    train(StackTrainer(config, together, CPU))
    for s in range(2):
        alone = make_run(str(s), data, config, seed=s, milestones=[30])
        train(StackTrainer(config, [alone], CPU))
        assert math.isclose(alone.curve[-1][1], together[s].curve[-1][1], rel_tol=STACK_TOLERANCE)


def test_muon_resumes_bit_identical_from_its_checkpoint(tmp_path):
    config, data = small_config(optimizer="muon"), shards(tmp_path / "data")
    whole = make_run("whole", data, config, seed=0, milestones=[24])
    train(StackTrainer(config, [whole], CPU))
    half = make_run("half", data, config, seed=0, milestones=[11])
    train(StackTrainer(config, [half], CPU))
    save_states(tmp_path / "state.safetensors", [half.state], {})
    rest = make_run("rest", data, config, seed=0, milestones=[24])
    rest.state = load_states(tmp_path / "state.safetensors")[0][0]
    train(StackTrainer(config, [rest], CPU))
    assert all(torch.equal(tensor, rest.state.tensors[name]) for name, tensor in whole.state.tensors.items())


def test_muon_learns(tmp_path):
    config = small_config(optimizer="muon")
    run = make_run("a", shards(tmp_path), config, seed=0, milestones=[75])
    train(StackTrainer(config, [run], CPU))
    assert run.curve[-1][1] < 0.7 * run.curve[0][1]


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match=r"proxy\.optimizer: expected one of adamw, muon, got 'sgd'"):
        small_config(optimizer="sgd")
