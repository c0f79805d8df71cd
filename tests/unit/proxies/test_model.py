"""The stacked transformer: causal, independent along S, as its formulas say."""

import pytest
import torch

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


@pytest.mark.parametrize("router", ["topk", "relu", "dense"])
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
