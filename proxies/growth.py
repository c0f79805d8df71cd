"""Growth: a trained proxy becomes the start of another run, of its own or a larger shape.

    fork                    same shape
    width, then depth       FPI or AKI; interpolation or stacking
    then experts            dense to MoE, MoE to a finer one

Weights and averaged weights grow alike, by the same draws. The step and the optimizer's
moments start anew, as in a fork: a grown model is a new run with a warm-up of its own.
Moments would need Adam's bias correction, which belongs to the step, and redrawn units
and new routers have none.

Decides nothing about when to grow; `warm_start` in a study forks, the bench
`warmstart` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixopt.errors import ConfigError

from .checkpoint import ModelState
from .config import ProxyConfig
from .optim import initial_state
from .upcycling import refine, scale_out
from .widening import widen

WIDTHS = ("fpi", "aki")
DEPTHS = ("interpolate", "stack")


@dataclass(frozen=True)
class Growth:
    """How to grow where there is a choice.

    Attributes:
        width: `fpi` (copies; preserves the function at integer multiples) or `aki`
            (added neurons come from the next block).
        depth: `interpolate` (every block repeated in place) or `stack` (the whole
            stack repeated). Neither preserves the function.
        drop: From dense to MoE, share of every routed expert's hidden units drawn
            anew; 0 is a plain copy.
        noise: Standard deviation of noise added to matrices that changed shape, as a
            share of the matrix's own. At 0 copies get equal gradients and stay equal
            for ever, so a widened model learns no more than the small one.

    Source: METHODS 5: methods of width and depth after AquilaMoE, arXiv:2408.06567, where
    FPI with interpolation starts lowest; drop 0.5 after Drop-Upcycling, noise 0.01 after
    orthogonal growth, arXiv:2510.08008. Not compared by us.
    """

    width: str = "fpi"
    depth: str = "interpolate"
    drop: float = 0.5
    noise: float = 0.01

    def __post_init__(self) -> None:
        for name, known in (("width", WIDTHS), ("depth", DEPTHS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"growth.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.drop <= 1:
            raise ConfigError(f"growth.drop: expected a share from 0 to 1, got {self.drop:g}")
        if not 0 <= self.noise < math.inf:
            raise ConfigError(f"growth.noise: expected a finite share of at least 0, got {self.noise:g}")


@dataclass(frozen=True)
class _Path:
    """The stations between two shapes.

    Attributes:
        source: Where it starts.
        wide: Widened, with experts `shards` times as wide as the target's.
        target: Where it ends.
        shards: Parts that a feed-forward (dense: its routed part) is cut into.
    """

    source: ProxyConfig
    wide: ProxyConfig
    target: ProxyConfig
    shards: int


def fork(state: ModelState, config: ProxyConfig) -> ModelState:
    """Return the start of a new run of the same shape: weights and averages kept, all else new."""
    return grow(state, config, config)


def grow(
    state: ModelState, source: ProxyConfig, target: ProxyConfig, *, growth: Growth | None = None, seed: int = 0
) -> ModelState:
    """Return the start of a run of shape `target` from a trained model of shape `source`.

    Args:
        state: The trained model.
        source: Its shape.
        target: The shape to grow to; nothing may shrink.
        growth: Methods where there is a choice.
        seed: Root of what is drawn: noise, routers, redrawn units.

    Returns:
        A state at step 0 without moments. Same arguments, same state.

    Raises:
        ConfigError: If the target cannot be grown from the source.
    """
    path = _path(source, target)
    tensors = dict(initial_state(target, seed).tensors)
    for kind in ("weights", "ema"):
        # The same stream for both: averages stay averages of the weights they stand beside.
        generator = torch.Generator().manual_seed(seed % 2**63)
        grown = _grown(_named(state, kind), path, growth or Growth(), generator)
        names = _names(tensors, kind)
        assert all(name in grown for key, name in names.items() if not key.startswith("buffers/"))
        tensors |= {key: grown[name].clone() for key, name in names.items() if name in grown}
    return ModelState(0, tensors)


def _grown(
    weights: Mapping[str, Tensor], path: _Path, growth: Growth, generator: torch.Generator
) -> Mapping[str, Tensor]:
    source, target = path.source, path.target
    copied = widen(weights, source, path.wide, advanced=growth.width == "aki")
    wide = _noisy(copied, weights, growth.noise, generator)
    deep = _deepened(wide, block_order(source.depth, target.depth, growth.depth))
    if source.router != target.router:
        return scale_out(deep, target, shards=path.shards, drop=growth.drop, generator=generator)
    if source.router != "dense" and source.experts != target.experts:
        return _noisy(refine(deep, source, target, shards=path.shards), deep, growth.noise, generator)
    return deep


def block_order(old: int, new: int, method: str) -> tuple[int, ...]:
    """Return the old block of each new one.

    Source: METHODS 5, after arXiv:2408.06567, which prints the interpolation's ratio inverted.
    """
    return tuple(i % old if method == "stack" else i * old // new for i in range(new))


def _deepened(weights: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
    deep = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.")}
    for new, old in enumerate(order):
        prefix = f"blocks.{old}."
        mine = {n.removeprefix(prefix): tensor for n, tensor in weights.items() if n.startswith(prefix)}
        deep |= {f"blocks.{new}.{rest}": tensor for rest, tensor in mine.items()}
    return deep


def _noisy(
    grown: Mapping[str, Tensor], before: Mapping[str, Tensor], noise: float, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Add noise to the matrices whose shape changed."""
    changed = [name for name, tensor in grown.items() if tensor.dim() > 1 and tensor.shape != before[name].shape]
    if not noise:
        return grown
    draws = {name: grown[name].std() * torch.randn(grown[name].shape, generator=generator) for name in changed}
    return {name: tensor + noise * draws[name] if name in draws else tensor for name, tensor in grown.items()}


def _names(tensors: Mapping[str, Tensor], kind: str) -> dict[str, str]:
    """Return {name in the state: name in its block} of one kind of weights and of the routers' own state."""
    names = {key: key.removeprefix(f"{kind}/") for key in tensors if key.startswith(f"{kind}/")}
    for key in (key for key in tensors if key.startswith("buffers/")):
        block, name = key.removeprefix("buffers/").split(".", 1)
        names[key] = f"blocks.{block}.moe.{name}"
    return names


def _named(state: ModelState, kind: str) -> dict[str, Tensor]:
    return {name: state.tensors[key] for key, name in _names(state.tensors, kind).items()}


# --- which shapes grow into which --------------------------------------------


def _path(source: ProxyConfig, target: ProxyConfig) -> _Path:
    for field in ("vocab_size", "head_dim"):
        old, new = getattr(source, field), getattr(target, field)
        if old != new:
            raise ConfigError(f"growth: {field} must stay, expected {old}, got {new}; correct the target")
    if target.depth < source.depth:
        raise ConfigError(f"growth: depth can only grow, expected at least {source.depth}, got {target.depth}")
    if (source.router, target.router) == ("dense", "topk"):
        shards = _shards(source.active_ffn_width - target.shared_width, target, math.gcd(target.experts, target.top_k))
        return _Path(source, replace(target, router="dense", depth=source.depth, top_k=shards), target, shards)
    if source.router != target.router:
        raise ConfigError(
            f"growth: from router {source.router} to {target.router} there is no way; dense grows to topk, "
            "all others keep their router"
        )
    if source.router == "dense":
        return _Path(source, replace(target, depth=source.depth), target, 1)
    shards = _shards(source.expert_width, target, _times(source, target))
    wide = replace(
        target, depth=source.depth, experts=source.experts, top_k=source.top_k,
        expert_width=shards * target.expert_width,
    )  # fmt: skip
    return _Path(source, wide, target, shards)


def _times(source: ProxyConfig, target: ProxyConfig) -> int:
    times, rest = divmod(target.experts, source.experts)
    if rest or target.top_k != times * source.top_k:
        raise ConfigError(
            f"growth: experts and top_k must grow by one integer factor, expected multiples of {source.experts} and "
            f"{source.top_k}, got {target.experts} and {target.top_k}; correct the target"
        )
    return times


def _shards(hidden: int, target: ProxyConfig, most: int) -> int:
    """Return the fewest parts that cover `hidden` units with experts of the target; divides `most`."""
    for shards in range(1, most + 1):
        if most % shards == 0 and shards * target.expert_width >= hidden:
            return shards
    raise ConfigError(
        f"growth: {hidden} routed hidden units do not fit into {most} experts of expert_width {target.expert_width}; "
        "raise the target's expert_width or shared_width, or its experts and top_k together"
    )
