"""The chunked head gives the losses and gradients of cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from mixopt.proxies.head import head_losses, mean_head_loss

from .test_kernels import random_tensor


def _cross_entropy(x, head, targets):
    logits = torch.bmm(x, head.transpose(1, 2))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_head_loss_and_its_gradient_are_those_of_cross_entropy(chunk, monkeypatch):
    monkeypatch.setattr("mixopt.proxies.head._CPU_CHUNK", chunk * 11)
    x, head, targets = random_tensor(2, 7, 4), random_tensor(2, 11, 4, seed=1), torch.arange(14).view(2, 7) % 11
    torch.testing.assert_close(head_losses(x, head, targets), _cross_entropy(x, head, targets).detach())
    upstream = torch.tensor([2.0, -3.0], dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad((upstream * mean_head_loss(x, head, targets)).sum(), (x, head)),
        torch.autograd.grad((upstream * _cross_entropy(x, head, targets).mean(1)).sum(), (x, head)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_head_loss_of_a_hopeless_target_is_finite():
    """Its probability underflows; the loss must not become infinite."""
    x, head = torch.ones(1, 1, 1), torch.tensor([[[200.0], [-200.0]]])
    assert head_losses(x, head, torch.tensor([[1]])).item() == pytest.approx(400.0)
