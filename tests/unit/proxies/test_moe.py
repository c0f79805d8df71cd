"""The routed layers are exact: they equal a loop over experts and drop no token."""

import pytest
import torch

from mixopt.proxies.kernels import swiglu
from mixopt.proxies.moe import DenseFeedForward, TopKFeedForward
from mixopt.proxies.remoe import ReluFeedForward

LAYERS = [TopKFeedForward, ReluFeedForward]


def make_layer(kind, num_models=2, experts=4, top_k=2, width=8, hidden=6, tokens=10, seed=0):
    """A layer in float64 with nothing at zero, and inputs."""
    generator = torch.Generator().manual_seed(seed)
    layer = kind(num_models, width, hidden, experts=experts, top_k=top_k).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for tensor in layer.own_state().values():
            tensor.copy_(0.1 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(num_models, tokens, width, generator=generator, dtype=torch.float64, requires_grad=True)
    return layer, x


def _gates(layer, x):
    """Gates of all experts (S, N, E), zero where a token does not go."""
    if isinstance(layer, ReluFeedForward):
        return torch.bmm(x, layer.router).relu()
    probs = torch.bmm(x, layer.router).softmax(-1)
    limit = (probs + layer.bias.unsqueeze(1)).sort(-1, descending=True).values[..., layer.top_k - 1 : layer.top_k]
    chosen = probs * (probs + layer.bias.unsqueeze(1) >= limit)
    return chosen / chosen.sum(-1, keepdim=True)


def _loop(layer, x):
    """Every expert on every token, weighted by its gate: the definition."""
    gates, rows = _gates(layer, x), []
    for s in range(x.shape[0]):
        halves = [(x[s] @ layer.up[s, e]).chunk(2, -1) for e in range(layer.up.shape[1])]
        outputs = [torch.nn.functional.silu(g) * u @ layer.down[s, e] for e, (g, u) in enumerate(halves)]
        rows.append(sum(gates[s, :, e : e + 1] * out for e, out in enumerate(outputs)))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_layer_equals_loop_over_experts(kind, top_k):
    layer, x = make_layer(kind, top_k=top_k)
    torch.testing.assert_close(layer(x), _loop(layer, x))


@pytest.mark.parametrize("kind", LAYERS)
def test_all_gradients_equal_those_of_the_loop(kind):
    layer, x = make_layer(kind)
    parameters = [x, *layer.parameters()]
    got = torch.autograd.grad(layer(x).square().sum(), parameters)
    expected = torch.autograd.grad(_loop(layer, x).square().sum(), parameters)
    torch.testing.assert_close(got, expected)


def test_one_expert_equals_the_dense_block():
    layer, x = make_layer(TopKFeedForward, experts=1, top_k=1)
    dense = DenseFeedForward(2, 8, 6).double()
    with torch.no_grad():
        dense.up.copy_(layer.up[:, 0])
        dense.down.copy_(layer.down[:, 0])
    torch.testing.assert_close(layer(x), dense(x))


def test_no_token_is_dropped_when_all_go_to_one_expert():
    layer, x = make_layer(TopKFeedForward, top_k=1, tokens=50)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([[0.0, 0.0, 9.0, 0.0]]))
    layer(x)
    assert layer.step_pairs.tolist() == [[0, 0, 50, 0]] * 2
    only = torch.stack([swiglu(x[s] @ layer.up[s, 2]) @ layer.down[s, 2] for s in range(2)])
    torch.testing.assert_close(layer(x), only)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_slice_of_a_stack_equals_the_layer_alone_bitwise(kind):
    layer, x = make_layer(kind, num_models=3)
    single = kind(1, 8, 6, experts=4, top_k=2).double()
    for s in range(3):
        with torch.no_grad():
            pairs = zip([*single.parameters()], [*layer.parameters()], strict=True)
            for mine, theirs in pairs:
                mine.copy_(theirs[s : s + 1])
            for name, tensor in layer.own_state().items():
                single.own_state()[name].copy_(tensor[s : s + 1])
        assert torch.equal(single(x[s : s + 1])[0], layer(x)[s])


def test_bias_falls_for_overloaded_experts_and_rises_for_idle_ones():
    layer, x = make_layer(TopKFeedForward)
    layer.balance_step, before = 0.01, layer.bias.clone()
    layer(x)
    layer.after_step(layer.step_active())
    load = layer.pairs / 20
    moved = layer.bias - before
    assert torch.all(moved[load > 0.25] < 0)
    assert torch.all(moved[load < 0.25] > 0)


@pytest.mark.parametrize("kind", LAYERS)
def test_loads_count_all_training_tokens_and_no_others(kind):
    layer, x = make_layer(kind)
    for _ in range(2):  # two parts of a step, then another step
        layer(x)
        layer(x)
        layer.after_step(layer.step_active())
    with torch.no_grad():
        layer(x)
    assert layer.tokens.tolist() == [40, 40]
    goes = _gates(layer, x) > 0
    for s in range(2):
        assert sum(layer.load(s)) == pytest.approx(1)
        assert layer.active(s) == pytest.approx(goes[s].sum().item() / 10)
        assert layer.load(s) == pytest.approx((goes[s].sum(0) / goes[s].sum()).tolist())
    layer.restart(0)
    assert layer.load(0) == [0.0] * 4
    assert layer.tokens.tolist() == [0, 40]
