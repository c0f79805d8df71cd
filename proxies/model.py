"""A stack of decoder-only transformers of one shape, as one program.

    S models in the stack, B sequences, L positions, D width, H heads, N = B * L,
    V vocabulary

Every parameter has a leading S axis and model s only ever meets its own slice, so a
model's result does not depend on its neighbors beyond the rounding of batched sums.
Pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU feed-forward
(routed experts plus a shared one, or dense), tied embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import StackedAttention, rotary_turns
from .config import ProxyConfig
from .head import head_losses, mean_head_loss
from .kernels import rms_norm
from .moe import DenseFeedForward, MoeFeedForward, TopKFeedForward
from .remoe import ReluFeedForward


class StackedNorm(nn.Module):
    """RMSNorm with a gain per model."""

    def __init__(self, num_models: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(num_models, width))

    def forward(self, x_SND: Tensor) -> Tensor:
        """Return (S, N, D) normalized activations."""
        return rms_norm(x_SND, self.gain)


class Block(nn.Module):
    """Attention and feed-forward, each with its norm and residual."""

    def __init__(self, num_models: int, config: ProxyConfig) -> None:
        super().__init__()
        self.norm1 = StackedNorm(num_models, config.width)
        self.attention = StackedAttention(num_models, config)
        self.norm2 = StackedNorm(num_models, config.width)
        dense = config.router == "dense"
        hidden = config.active_ffn_width if dense else config.shared_width
        self.shared = DenseFeedForward(num_models, config.width, hidden)
        self.moe = None if dense else _routed(num_models, config)

    def forward(self, x_SND: Tensor, batch: int, turn_LHC: Tensor) -> Tensor:
        """Return (S, N, D) activations."""
        x_SND = x_SND + self.attention(self.norm1(x_SND), batch, turn_LHC)
        y_SND = self.norm2(x_SND)
        out = self.shared(y_SND)
        if self.moe is not None:
            out = out + self.moe(y_SND)
        return torch.add(x_SND, out)


class ProxyStack(nn.Module):
    """S proxies of one shape.

    Args:
        config: Their common shape.
        num_models: S.
    """

    turn_LHC: Tensor

    def __init__(self, config: ProxyConfig, num_models: int) -> None:
        super().__init__()
        self.config = config
        self.num_models = num_models
        self.embedding = nn.Parameter(torch.empty(num_models, config.vocab_size, config.width))
        self.blocks = nn.ModuleList(Block(num_models, config) for _ in range(config.depth))
        self.norm = StackedNorm(num_models, config.width)
        self.register_buffer("turn_LHC", rotary_turns(config), persistent=False)

    @torch.no_grad()
    def initialize(self, generators: Sequence[torch.Generator]) -> ProxyStack:
        """Draw each model's weights from its own generator, on the CPU.

        Matrices have standard deviation `1 / sqrt(fan in)`, those that write to the
        residual stream start at zero, the embedding at 0.02.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                continue
            for s, generator in enumerate(generators):
                draw = torch.randn(parameter.shape[1:], generator=generator)
                std = 0.02 if name == "embedding" else parameter.shape[-2] ** -0.5
                zero = name.endswith((".out", ".down"))
                parameter[s].copy_(draw * (0.0 if zero else std))
        return self

    def forward(self, tokens_SBL: Tensor) -> Tensor:
        """Return (S, N, D) final activations of (S, B, L) tokens."""
        num_models, batch, length = tokens_SBL.shape
        offset = self.config.vocab_size * torch.arange(num_models, device=tokens_SBL.device)
        flat = tokens_SBL.reshape(num_models, -1) + offset.unsqueeze(1)
        x_SND = F.embedding(flat, self.embedding.flatten(0, 1))
        x_SND = F.rms_norm(x_SND, (x_SND.shape[-1],), eps=1e-6)
        again = self.config.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            # Routing is the same the second time: its state moves between steps only.
            rest = batch, self.turn_LHC[:length]
            x_SND = checkpoint(block, x_SND, *rest, use_reentrant=False) if again else block(x_SND, *rest)
        return self.norm(x_SND)  # type: ignore[no-any-return]

    def mean_losses(self, tokens_SBL: Tensor, targets_SBL: Tensor) -> Tensor:
        """Return each model's (S,) mean negative log-likelihood, nats per token, to be differentiated."""
        return mean_head_loss(self(tokens_SBL), self.embedding, targets_SBL.flatten(1))

    @torch.no_grad()
    def token_losses(self, tokens_SBL: Tensor, targets_SBL: Tensor) -> Tensor:
        """Return (S, B, L) negative log-likelihoods of the targets, nats per token, without gradients."""
        return head_losses(self(tokens_SBL), self.embedding, targets_SBL.flatten(1)).view(targets_SBL.shape)

    def moe_layers(self) -> list[MoeFeedForward]:
        """Return the routed layers, first block first; empty for a dense proxy."""
        return [block.moe for block in self.blocks if block.moe is not None]  # type: ignore[misc]

    def router_penalty(self) -> Tensor:
        """Return (S,) what the routers add to the losses of the last forward pass, a mean over layers."""
        penalties = [layer.penalty for layer in self.moe_layers() if layer.penalty is not None]
        return torch.stack(penalties).mean(0) if penalties else self.embedding.new_zeros(self.num_models)

    def update_routers(self) -> None:
        """Move the routers' own state after a step, and count its tokens."""
        layers = self.moe_layers()
        active_LS = [layer.step_active() for layer in layers]
        for layer in layers:
            layer.after_step(torch.stack(active_LS).mean(0))

    @torch.no_grad()
    def load_routers(self, s: int, tensors: Mapping[str, Tensor]) -> None:
        """Set model s's `router_state`; what starts here, grown or forked, has no counts yet."""
        for name, mine in self.router_state().items():
            if name in tensors or not name.startswith("counts/"):
                mine[s].copy_(tensors[name])

    def router_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold of the routers, by name; each (S, ...)."""
        return {
            f"{kind}/{i}.{name}": tensor
            for i, layer in enumerate(self.moe_layers())
            for kind, part in (("buffers", layer.own_state()), ("counts", layer.counts()))
            for name, tensor in part.items()
        }


def _routed(num_models: int, config: ProxyConfig) -> MoeFeedForward:
    sizes = {"experts": config.experts, "top_k": config.top_k}
    if config.router == "relu":
        return ReluFeedForward(num_models, config.width, config.expert_width, **sizes)
    return TopKFeedForward(num_models, config.width, config.expert_width, **sizes, balance_step=config.balance_step)
