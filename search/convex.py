"""The reduction and the penalty of `mixopt.convex` on tensors, differentiable."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mixopt.convex import KL_FLOOR, KLPenalty, Reduction


def reduce_tensor(reduction: Reduction, columns: Tensor) -> Tensor:
    """Return (...) objectives of (..., J) columns."""
    terms = torch.as_tensor(np.array(reduction.weights)) * columns
    return terms.sum(-1) if reduction.kind == "sum" else terms.max(-1).values


def penalty_tensor(penalty: KLPenalty, weights: Tensor) -> Tensor:
    """Return (...) penalties of (..., K) weights."""
    if penalty.weight == 0:
        return torch.zeros(weights.shape[:-1], dtype=weights.dtype)
    reference = torch.as_tensor(np.array(penalty.reference), dtype=weights.dtype)
    ratio = (weights.clamp_min(0) + KL_FLOOR).log() - (reference + KL_FLOOR).log()
    return penalty.weight * (weights * ratio).sum(-1)
