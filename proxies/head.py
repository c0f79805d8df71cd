"""Next-token losses of a stack, without ever holding all the logits.

The head is the largest product of a small model. Logits are made, turned into
probabilities and into gradients chunk by chunk, while they are in the cache.

    S models in the stack, N tokens per model, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .kernels import at_least_float32, to_autocast

# Logits of one chunk stay in a core's L2 cache (1 MiB); a GPU wants few large products.
_CPU_CHUNK = 2**18
_GPU_CHUNK = 2**26


def _token_losses(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) negative log-likelihoods and (N, V) probabilities with one pass of exponentials."""
    probs_NV = logits_NV.softmax(1)
    # The largest probability is at least 1 / V, so its logarithm is safe where the target's may not be.
    shift_N = logits_NV.amax(1) - probs_NV.amax(1).log()
    return shift_N - logits_NV.gather(1, targets_N1).squeeze(1), probs_NV


def _chunks(x_SND: Tensor, vocab_size: int) -> Iterator[tuple[int, slice]]:
    size = max(1, (_GPU_CHUNK if x_SND.device.type == "cuda" else _CPU_CHUNK) // vocab_size)
    return ((s, slice(i, i + size)) for s in range(x_SND.shape[0]) for i in range(0, x_SND.shape[1], size))


@torch.no_grad()
def head_losses(x_SND: Tensor, head_SVD: Tensor, targets_SN: Tensor) -> Tensor:
    """Return (S, N) losses of the targets, nats per token, without gradients."""
    x_SND, head_SVD = to_autocast(x_SND, head_SVD)
    losses_SN = at_least_float32(x_SND.new_empty(targets_SN.shape))
    for s, here in _chunks(x_SND, head_SVD.shape[1]):
        logits_NV = at_least_float32(torch.mm(x_SND[s, here], head_SVD[s].t()))
        losses_SN[s, here] = _token_losses(logits_NV, targets_SN[s, here].unsqueeze(1))[0]
    return losses_SN


class _MeanHeadLoss(torch.autograd.Function):
    """The gradient is made with the loss, while a chunk's probabilities are in the cache."""

    @staticmethod
    def forward(ctx: Any, x_SND: Tensor, head_SVD: Tensor, targets_SN: Tensor) -> Tensor:
        grad_x, losses_SN = torch.empty_like(x_SND), at_least_float32(x_SND.new_empty(targets_SN.shape))
        grad_head = at_least_float32(torch.zeros_like(head_SVD))  # a sum of many chunks
        for s, here in _chunks(x_SND, head_SVD.shape[1]):
            x, head, y = x_SND[s, here], head_SVD[s], targets_SN[s, here].unsqueeze(1)
            losses_SN[s, here], grad_logits = _token_losses(at_least_float32(torch.mm(x, head.t())), y)
            grad_logits.scatter_add_(1, y, -torch.ones_like(y, dtype=grad_logits.dtype))
            grad_logits = grad_logits.to(x.dtype)
            torch.mm(grad_logits, head, out=grad_x[s, here])
            if grad_head.dtype == x.dtype:
                torch.addmm(grad_head[s], grad_logits.t(), x, out=grad_head[s])
            else:
                grad_head[s] += torch.mm(grad_logits.t(), x)
        ctx.save_for_backward(grad_x, grad_head)
        ctx.dtype = head_SVD.dtype
        return losses_SN.mean(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_head = ctx.saved_tensors
        scale = (grads[0] / grad_x.shape[1]).view(-1, 1, 1)
        return (grad_x * scale).to(grad_x.dtype), (grad_head * scale).to(ctx.dtype), None


def mean_head_loss(x_SND: Tensor, head_SVD: Tensor, targets_SN: Tensor) -> Tensor:
    """Return (S,) mean losses of the targets, nats per token, to be differentiated.

    Args:
        x_SND: Final activations.
        head_SVD: Output embedding of each model.
        targets_SN: Next tokens.
    """
    return _MeanHeadLoss.apply(*to_autocast(x_SND, head_SVD), targets_SN)  # type: ignore[no-any-return,no-untyped-call]
