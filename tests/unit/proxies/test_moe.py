"""The routed layer is exact: it equals a loop over experts, and one expert is the dense block."""

import pytest
import torch

from mixopt.proxies.moe import DenseFeedForward, MoeFeedForward, grouped_matmul, swiglu


def _layer(num_models=2, experts=4, top_k=2, width=8, hidden=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = MoeFeedForward(num_models, width, hidden, experts=experts, top_k=top_k).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64))
    return layer, torch.randn(num_models, 10, width, generator=generator, dtype=torch.float64, requires_grad=True)


def _loop(layer, x):
    """Every expert on every token, weighted by its gate: the definition."""
    gates, chosen = layer.route(x)
    rows = []
    for s in range(x.shape[0]):
        dense = torch.zeros(x.shape[1], layer.bias.shape[1], dtype=x.dtype).scatter(1, chosen[s], gates[s])
        outputs = [swiglu(x[s] @ layer.up[s, e]) @ layer.down[s, e] for e in range(layer.bias.shape[1])]
        rows.append(sum(dense[:, e : e + 1] * out for e, out in enumerate(outputs)))
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_layer_equals_loop_over_experts(top_k):
    layer, x = _layer(top_k=top_k)
    torch.testing.assert_close(layer(x), _loop(layer, x))


def test_gradients_equal_those_of_the_loop():
    layer, x = _layer()
    parameters = [x, *layer.parameters()]
    got = torch.autograd.grad(layer(x).square().sum(), parameters)
    expected = torch.autograd.grad(_loop(layer, x).square().sum(), parameters)
    torch.testing.assert_close(got, expected)


def test_one_expert_equals_the_dense_block():
    layer, x = _layer(experts=1, top_k=1)
    dense = DenseFeedForward(2, 8, 6).double()
    with torch.no_grad():
        dense.up.copy_(layer.up[:, 0])
        dense.down.copy_(layer.down[:, 0])
    torch.testing.assert_close(layer(x), dense(x))


def test_grouped_matmul_accepts_empty_groups():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: grouped_matmul(a, b, [2, 0, 3]), (x, weight))


def test_bias_falls_for_overloaded_experts_and_rises_for_idle_ones():
    layer, x = _layer()
    layer(x)
    before = layer.bias.clone()
    layer.update_bias(0.01)
    moved = layer.bias - before
    assert torch.all(moved[layer.load > 0.25] < 0)
    assert torch.all(moved[layer.load < 0.25] > 0)


def test_loads_sum_to_one_per_model():
    layer, x = _layer()
    layer(x)
    torch.testing.assert_close(layer.load.sum(1).double(), torch.ones(2, dtype=torch.float64))
