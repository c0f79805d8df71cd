"""The stacked transformer: causal, independent along S, counted right."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.cost import active_params, forward_flops_per_token, total_params
from mixopt.proxies.model import ProxyStack

from .builders import VOCAB, small_config


def _stack(config, num_models):
    stack = ProxyStack(config, num_models).initialize([torch.Generator().manual_seed(s) for s in range(num_models)])
    with torch.no_grad():
        # Matrices that start at zero would hide what flows through them.
        for name, parameter in stack.named_parameters():
            if name.endswith((".out", ".down")):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(7))
    return stack


def _tokens(num_models, batch=2, length=16, seed=1):
    return torch.randint(VOCAB, (num_models, batch, length), generator=torch.Generator().manual_seed(seed))


def test_later_tokens_do_not_change_earlier_losses():
    stack = _stack(small_config(depth=2), 1)
    tokens = _tokens(1)
    changed = tokens.clone()
    changed[..., 10:] = (changed[..., 10:] + 5) % VOCAB
    first, second = stack.token_losses(tokens, tokens), stack.token_losses(changed, tokens)
    torch.testing.assert_close(first[..., :10], second[..., :10])
    assert not torch.allclose(first[..., 10:], second[..., 10:])


@pytest.mark.parametrize("router", ["topk", "dense"])
def test_a_model_computes_the_same_alone_and_in_a_stack(router):
    config = small_config(router=router)
    stack, tokens = _stack(config, 3), _tokens(3)
    together = stack.token_losses(tokens, tokens)
    for s in range(3):
        single = ProxyStack(config, 1)
        with torch.no_grad():
            for mine, theirs in zip(single.parameters(), stack.parameters(), strict=True):
                mine.copy_(theirs[s : s + 1])
        torch.testing.assert_close(single.token_losses(tokens[s : s + 1], tokens[s : s + 1])[0], together[s])


def test_initial_loss_is_that_of_a_uniform_guess():
    stack, tokens = ProxyStack(small_config(), 1).initialize([torch.Generator().manual_seed(0)]), _tokens(1, batch=8)
    loss = stack.token_losses(tokens, torch.randint(VOCAB, tokens.shape, generator=torch.Generator().manual_seed(9)))
    assert loss.mean().item() == pytest.approx(torch.log(torch.tensor(float(VOCAB))).item(), abs=0.05)


@pytest.mark.parametrize(("router", "depth"), [("topk", 1), ("topk", 3), ("dense", 1), ("dense", 2)])
def test_parameter_counts_are_exact(router, depth):
    config = ProxyConfig(VOCAB, depth=depth, router=router)
    assert total_params(config) == sum(p.numel() for p in ProxyStack(config, 1).parameters())
    idle = (config.experts - config.top_k) * config.expert_width * 3 * config.width * depth if router == "topk" else 0
    assert active_params(config) == total_params(config) - idle


@pytest.mark.parametrize("router", ["topk", "dense"])
def test_flops_are_within_3_percent_of_a_count(router):
    config = ProxyConfig(1024, depth=2, router=router, sequence_length=128)
    stack = ProxyStack(config, 1).initialize([torch.Generator().manual_seed(0)])
    tokens = torch.randint(1024, (1, 2, 128), generator=torch.Generator().manual_seed(1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stack.token_losses(tokens, tokens)
    # Fused attention is counted fully, half (causal) or not at all, depending on the kernel: compare the rest.
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    attention = 2 * config.depth * config.width * config.sequence_length
    assert forward_flops_per_token(config) - attention == pytest.approx(counted / tokens.numel(), rel=0.03)


def test_dense_control_has_equal_active_width():
    moe, dense = ProxyConfig(1024, depth=2), ProxyConfig(1024, depth=2, router="dense")
    assert forward_flops_per_token(dense) == pytest.approx(forward_flops_per_token(moe), rel=0.02)
