"""Wider proxies: every neuron of the new model copies one of the old (FPI, AKI).

A neuron is a coordinate of the residual stream, an attention head, or a hidden unit of
a feed-forward. A matrix writes neurons with its columns and reads them with its rows.
New columns repeat old ones; the rows of a neuron with n copies are divided by n, so
that what reads the copies gets the old sum. Exact where the width of the residual
stream grows by an integer factor (elsewhere RMSNorm sees some neurons more often than
others); heads and hidden units may grow to any number.

The tied embedding both writes (tokens) and reads (logits): it is copied whole, and the
gain of the last norm, which scales what the head reads, takes the division. The norm
of the token embeddings then sees copies alone and stays as it is.

    D width, H query heads, C key-value heads, F hidden width

Source: METHODS 5, after AquilaMoE, arXiv:2408.06567; what norms and tied embedding
need is derived here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixopt.errors import ConfigError

from .config import ProxyConfig

# One entry per axis of a parameter: the neurons it runs over, "/" before those it reads.
_AXES: Mapping[str, tuple[str, ...]] = {
    "embedding": ("", "residual"),
    "norm.gain": ("/residual",),
    "norm1.gain": ("residual",),
    "norm2.gain": ("residual",),
    "attention.qkv": ("/residual", "qkv"),
    "attention.out": ("/heads", "residual"),
    "shared.up": ("/residual", "shared_pair"),
    "shared.down": ("/shared", "residual"),
    "moe.router": ("/residual", ""),
    "moe.up": ("", "/residual", "expert_pair"),
    "moe.down": ("", "/expert", "residual"),
}


@dataclass(frozen=True, eq=False)
class _Neurons:
    """Which old neuron each new one copies.

    Attributes:
        old: (N,) indices of old neurons.
        copies: (N,) how many new neurons copy the same old one, float.
        first: (N,) whether it is the first of them.
    """

    old: Tensor
    copies: Tensor
    first: Tensor

    @classmethod
    def of(cls, old: Tensor) -> _Neurons:
        first = torch.zeros(len(old), dtype=torch.bool)
        first[torch.from_numpy(np.unique(old.numpy(), return_index=True)[1])] = True
        return cls(old, torch.bincount(old)[old].float(), first)


def widen(
    weights: Mapping[str, Tensor], source: ProxyConfig, target: ProxyConfig, *, advanced: bool
) -> dict[str, Tensor]:
    """Widen the tensors of one model; depth, router and numbers of experts stay.

    Args:
        weights: {name: tensor} of the source, blocks as `blocks.<i>.`.
        source: Its shape.
        target: The wider shape.
        advanced: AKI instead of FPI: added neurons of a block are those of the block
            after it, so that copies differ; the function is not preserved. The last
            block has none after it and follows FPI.

    Raises:
        ConfigError: If something shrinks or the heads cannot be grouped.
    """
    neurons = _neurons(source, target)
    wide = {name: _copied(tensor, _AXES.get(_kind(name), ()), neurons) for name, tensor in weights.items()}
    if not advanced or all(bool(n.first.all()) for n in neurons.values()):
        return wide
    if source.depth == 1:
        raise ConfigError("growth: aki takes neurons of the next block, the source has one block only; use fpi")
    return {
        name: _mixed(tensor, wide.get(_next(name)), _AXES.get(_kind(name), ()), neurons)
        for name, tensor in wide.items()
    }


def _neurons(source: ProxyConfig, target: ProxyConfig) -> dict[str, _Neurons]:
    spaces = {"residual": _repeated("width", source.width, target.width)}
    heads, kv_heads = _heads(source, target)
    keys, values = ([start + c for c in kv_heads] for start in (source.num_heads, source.num_heads + source.kv_heads))
    spaces["heads"] = _spread(heads, source.head_dim)
    spaces["qkv"] = _spread([*heads, *keys, *values], source.head_dim)
    hidden = {
        "shared": (source.shared_width, target.shared_width),
        "expert": (source.expert_width, target.expert_width),
    }
    if source.router == "dense":
        hidden = {"shared": (source.active_ffn_width, target.active_ffn_width)}
    for name, (old, new) in hidden.items():
        spaces[name] = _repeated(f"{name}_width", old, new)
        spaces[f"{name}_pair"] = torch.cat([spaces[name], old + spaces[name]])
    return {name: _Neurons.of(old) for name, old in spaces.items()}


def _repeated(field: str, old: int, new: int) -> Tensor:
    if new < old:
        raise ConfigError(f"growth: {field} can only grow, expected at least {old}, got {new}; widen the target")
    return torch.arange(new) % old


def _spread(heads: list[int], dim: int) -> Tensor:
    return (torch.tensor(heads).unsqueeze(1) * dim + torch.arange(dim)).flatten()


def _heads(source: ProxyConfig, target: ProxyConfig) -> tuple[list[int], list[int]]:
    """Return the old query and key-value head of each new one; query heads stay with their key-value head."""
    repeat, old_repeat = target.num_heads // target.kv_heads, source.num_heads // source.kv_heads
    kv_heads = [c % source.kv_heads for c in range(target.kv_heads)]
    taken = Counter[int]()
    heads = []
    for c in (c for c in kv_heads for _ in range(repeat)):
        heads.append(c * old_repeat + taken[c] % old_repeat)
        taken[c] += 1
    if any(taken[c] < old_repeat for c in range(source.kv_heads)):
        raise ConfigError(
            f"growth: {source.num_heads} query heads on {source.kv_heads} key-value heads do not fit into "
            f"{target.num_heads} on {target.kv_heads}; give the target at least as many of both"
        )
    return heads, kv_heads


def _copied(tensor: Tensor, axes: tuple[str, ...], neurons: Mapping[str, _Neurons]) -> Tensor:
    for axis, space in enumerate(axes):
        if space:
            mine = neurons[space.removeprefix("/")]
            tensor = tensor.index_select(axis, mine.old)
            if space.startswith("/"):
                tensor = tensor / _along(mine.copies, axis, tensor)
    return tensor


def _mixed(own: Tensor, following: Tensor | None, axes: tuple[str, ...], neurons: Mapping[str, _Neurons]) -> Tensor:
    for axis, space in enumerate(axes):
        if space and not space.startswith("/") and following is not None:
            own = torch.where(_along(neurons[space].first, axis, own), own, following)
    return own


def _along(values: Tensor, axis: int, tensor: Tensor) -> Tensor:
    return values.view([-1 if i == axis else 1 for i in range(tensor.dim())])


def _kind(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def _next(name: str) -> str:
    if not name.startswith("blocks."):
        return ""
    _, number, rest = name.split(".", 2)
    return f"blocks.{int(number) + 1}.{rest}"
