"""ReLU routing: penalty and controller are the paper's, the state survives, the density settles."""

import pytest
import torch

from mixopt.proxies.model import ProxyStack
from mixopt.proxies.remoe import ReluFeedForward
from mixopt.proxies.train import StackTrainer

from .builders import CPU, make_run, shards, small_config, train
from .test_moe import make_layer


def test_penalty_is_the_papers_formula_and_its_gradient_ignores_the_loads():
    layer, x = make_layer(ReluFeedForward)
    gates = torch.bmm(x, layer.router).relu()
    num_tokens, num_experts = gates.shape[1:]
    shares = (gates > 0).double().sum(1) * num_experts / (layer.top_k * num_tokens)  # f_le, a constant
    expected = layer.mu * (shares.detach().unsqueeze(1) * gates).sum((1, 2)) / num_tokens
    layer(x)
    torch.testing.assert_close(layer.penalty, expected)
    got, wanted = (torch.autograd.grad(p.sum(), layer.router)[0] for p in (layer.penalty, expected))
    torch.testing.assert_close(got, wanted)


def test_a_token_without_active_experts_gets_zeros():
    layer, x = make_layer(ReluFeedForward)
    with torch.no_grad():
        layer.router.copy_(layer.router.abs())
        x[:, 3] = -1.0
    out = layer(x)
    assert torch.all(out[:, 3] == 0)
    assert torch.all(torch.autograd.grad(out.sum(), x)[0][:, 3] == 0)


def test_a_layer_without_any_active_expert_gives_zeros_and_no_gradient():
    layer, x = make_layer(ReluFeedForward)
    with torch.no_grad():
        layer.router.zero_()
    out = layer(x)
    assert torch.all(out == 0)
    assert all(torch.all(g == 0) for g in torch.autograd.grad(out.sum(), list(layer.parameters())))


@pytest.mark.parametrize(("active", "factor"), [(3.0, 1.2), (1.0, 1 / 1.2), (2.0, 1.0)])
def test_mu_moves_by_its_factor_towards_the_target_density(active, factor):
    layer, _ = make_layer(ReluFeedForward)
    before = layer.mu.clone()
    layer.adjust(torch.full((2, 4), 0.25), torch.tensor([active, 2.0]))
    torch.testing.assert_close(layer.mu, before * torch.tensor([factor, 1.0], dtype=torch.float64))


def test_penalty_of_a_stack_is_the_mean_over_layers_and_each_model_has_its_own():
    stack = ProxyStack(small_config(depth=2, router="relu"), 2).initialize(
        [torch.Generator().manual_seed(s) for s in range(2)]
    )
    tokens = torch.randint(64, (2, 2, 16), generator=torch.Generator().manual_seed(5))
    stack(tokens)
    layers = stack.moe_layers()
    torch.testing.assert_close(stack.router_penalty(), (layers[0].penalty + layers[1].penalty) / 2)
    stack.update_routers()
    assert torch.equal(layers[0].mu, layers[1].mu)


def test_density_settles_at_top_k_within_120_steps(tmp_path):
    """METHODS 4.1: within 0.02 of k/E after step 120; a mean, because so small a batch makes it swing."""
    config = small_config(router="relu", depth=2, experts=8, width=16, batch_size=4)
    run = make_run("a", shards(tmp_path), config, seed=0, milestones=[120, 250])
    seen = []
    train(StackTrainer(config, [run], CPU), lambda milestone: seen.append(milestone.active_experts))
    assert seen[1] / config.experts == pytest.approx(config.top_k / config.experts, abs=0.02)
    assert seen[0] > seen[1]  # the way there is charged as it was


def test_interrupted_training_keeps_mu_and_counts_and_ends_bit_identical(tmp_path):
    config, data = small_config(router="relu"), shards(tmp_path)
    whole = make_run("a", data, config, seed=0, milestones=[30])
    loads = []
    train(StackTrainer(config, [whole], CPU), lambda milestone: loads.append(milestone.router_loads))
    halves = make_run("a", data, config, seed=0, milestones=[30])
    first = StackTrainer(config, [halves], CPU)
    for _ in range(13):
        first.advance(lambda milestone: None)
    first.sync()
    assert halves.state.tensors["buffers/0.mu"] > 1e-4
    train(StackTrainer(config, [halves], CPU), lambda milestone: loads.append(milestone.router_loads))
    assert all(torch.equal(tensor, halves.state.tensors[name]) for name, tensor in whole.state.tensors.items())
    assert loads[0] == loads[1]


def test_models_of_a_stack_keep_their_own_mu(tmp_path):
    config, data = small_config(router="relu"), shards(tmp_path)
    together = [make_run(str(s), data, config, seed=s, milestones=[25]) for s in range(2)]
    train(StackTrainer(config, together, CPU))
    for s, run in enumerate(together):
        alone = make_run("x", data, config, seed=s, milestones=[25])
        train(StackTrainer(config, [alone], CPU))
        assert torch.equal(alone.state.tensors["buffers/0.mu"], run.state.tensors["buffers/0.mu"])
        assert alone.curve[-1][1] == pytest.approx(run.curve[-1][1], rel=1e-3)
