"""Attention is its definition on either path, and so are its gradients."""

import pytest
import torch

from mixopt.proxies import attention
from mixopt.proxies.attention import StackedAttention, attend, rotary_turns

from .builders import small_config

PATHS = {"kept": (256, 64), "kept in blocks": (256, 5), "library": (0, 64)}


def _layer(kv_heads, num_models=2):
    """A layer in float64 and its inputs: two sequences of sixteen positions, four query heads."""
    config = small_config(width=32, head_dim=8, kv_heads=kv_heads)
    generator = torch.Generator().manual_seed(0)
    layer = StackedAttention(num_models, config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    x = torch.randn(num_models, 32, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    return layer, x, rotary_turns(config).to(torch.complex128)


def _definition(layer, x, s):
    """Rotary positions in half-split layout, as in Hugging Face's Llama, base 10000; grouped heads; causal."""
    c = layer.config
    heads = (x[s] @ layer.qkv[s]).view(2, 16, -1, c.head_dim).transpose(1, 2)
    q, k, v = heads.split([c.num_heads, c.kv_heads, c.kv_heads], dim=1)
    half = c.head_dim // 2
    angle = torch.outer(torch.arange(16.0), 10_000.0 ** (-torch.arange(half) / half)).repeat(1, 2)
    q, k = (h * angle.cos() + torch.cat([-h[..., half:], h[..., :half]], -1) * angle.sin() for h in (q, k))
    k, v = (h.repeat_interleave(c.num_heads // c.kv_heads, dim=1) for h in (k, v))
    scores = (q @ k.transpose(2, 3) / c.head_dim**0.5).masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(32, c.width) @ layer.out[s]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_and_its_gradients_are_those_of_the_definition(path, kv_heads, monkeypatch):
    monkeypatch.setattr(attention, "_MAX_KEPT_LENGTH", PATHS[path][0])
    monkeypatch.setattr(attention, "_BLOCK", PATHS[path][1])
    layer, x, turn = _layer(kv_heads)
    got, expected = layer(x, 2, turn), torch.stack([_definition(layer, x, s) for s in range(2)])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # angles are of float32
    parameters = [x, *layer.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), parameters) for y in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_gradient_equals_finite_differences(monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 3)
    turn = rotary_turns(small_config(width=8, head_dim=4, sequence_length=5)).to(torch.complex128)
    qkv = torch.randn(1, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attend(x, turn, 1), (qkv,))


def test_a_shorter_sequence_uses_the_first_positions():
    layer, x, turn = _layer(2)
    both = x.view(2, 2, 16, 32)
    torch.testing.assert_close(
        layer(both[:, :, :9].flatten(1, 2), 2, turn[:9]), layer(x, 2, turn).view(2, 2, 16, 32)[:, :, :9].flatten(1, 2)
    )
