"""Parameters and FLOPs: counted exactly, and as torch counts them while it computes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.cost import active_params, forward_flops_per_token, total_params, training_flops
from mixopt.proxies.model import ProxyStack

ROUTERS = ["topk", "relu", "dense"]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("depth", [1, 3])
def test_parameter_counts_are_exact(router, depth):
    config = ProxyConfig(64, depth=depth, router=router)
    assert total_params(config) == sum(p.numel() for p in ProxyStack(config, 1).parameters())
    idle = 0 if router == "dense" else (config.experts - config.top_k) * config.expert_width * 3 * config.width * depth
    assert active_params(config) == total_params(config) - idle


def _count(config, *, backward):
    """FLOPs per token that torch counts, and the mean active experts meanwhile.

    Only the reference attention is counted on a CPU, and its square in full: our
    formula takes the half that causal attention needs, so it is added once more below.
    """
    stack = ProxyStack(config, 2).initialize([torch.Generator().manual_seed(s) for s in range(2)])
    tokens = torch.randint(config.vocab_size, (2, 2, 128), generator=torch.Generator().manual_seed(1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if backward:
            stack.mean_losses(tokens, tokens).sum().backward()
        else:
            stack.token_losses(tokens, tokens)
    flops = counter.get_total_flops()
    stack(tokens)
    layers = stack.moe_layers()
    active = float(torch.stack([layer.step_active() for layer in layers]).mean()) if layers else None
    return flops / tokens.numel(), active


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(("backward", "passes"), [(False, 1), (True, 3)])
def test_flops_are_within_3_percent_of_a_count(router, backward, passes, monkeypatch):
    monkeypatch.setattr("mixopt.proxies.kernels._GROUPED_MM", None)  # torch does not count in there
    monkeypatch.setattr("mixopt.proxies.attention._MAX_KEPT_LENGTH", 0)
    config = ProxyConfig(256, depth=2, router=router)
    counted, active = _count(config, backward=backward)
    other_half = 2 * config.depth * config.width * config.sequence_length
    assert passes * (forward_flops_per_token(config, active) + other_half) == pytest.approx(counted, rel=0.03)


def test_a_relu_run_is_charged_for_its_measured_experts():
    relu, topk = (ProxyConfig(64, router=router) for router in ("relu", "topk"))
    assert training_flops(relu, 1000, 2.0) == training_flops(topk, 1000)
    expert = 3 * 2 * 3 * relu.width * relu.expert_width  # three passes, two FLOPs, three matrices
    assert training_flops(relu, 1000, 3.5) - training_flops(relu, 1000, 2.0) == pytest.approx(1000 * 1.5 * expert)


def test_dense_control_has_equal_active_width():
    moe, dense = ProxyConfig(1024, depth=2), ProxyConfig(1024, depth=2, router="dense")
    assert forward_flops_per_token(dense) == pytest.approx(forward_flops_per_token(moe), rel=0.02)
