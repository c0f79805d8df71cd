"""A proxy's weights as those of an architecture of Hugging Face `transformers`, with equal logits.

`transformers` itself is not needed. What our model has and theirs has not is rewritten,
not approximated:

- The norm of the input embedding depends on the token alone, so it is baked into an
  input embedding of its own; the head keeps the raw one.
- Mixtral has no shared expert: as a token's gates sum to 1, the shared expert's hidden
  units appended to every routed expert add its output exactly once.
- The balancing bias selects experts and does not weight them. Mixtral has none; Ernie
  4.5 MoE has the same. It rotates neighboring columns of a head where we rotate
  halves, so the columns of queries and keys are permuted.

    D width, F hidden width of a feed-forward expert, E feed-forward experts, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixopt.errors import ConfigError

from .config import ProxyConfig
from .model import Block, ProxyStack
from .moe import TopKFeedForward
from .scoring import ScoringRows, score

# {name here and in config.json: class that `transformers` builds}.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
}
# Both as in model.py; the test of equal logits holds them together.
_NORM_EPSILON = 1e-6
_ROPE_BASE = 10_000.0


def choose_architecture(model: ProxyStack, asked: str = "auto") -> str:
    """Return the architecture a proxy is written as.

    Args:
        model: A stack of one.
        asked: `auto` for the one that is exact, or `mixtral` to drop the balancing bias.

    Raises:
        ConfigError: If `asked` is unknown or does not fit, or nothing there computes
            what this router does.
    """
    router = model.config.router
    if asked not in ("auto", "mixtral"):
        raise ConfigError(f"--architecture: expected auto or mixtral, got {asked!r}")
    if router == "dense":
        if asked != "auto":
            raise ConfigError("--architecture: a dense proxy is written as llama, got mixtral; drop the option")
        return "llama"
    if router != "topk":
        raise ConfigError(
            f"proxy.router: no architecture of transformers computes what {router!r} does; "
            "only topk and dense proxies can be exported, so train one with router: topk"
        )
    biased = any(bool(layer.bias.any()) for layer in _moe_layers(model))
    return "ernie4_5_moe" if biased and asked == "auto" else "mixtral"


def hf_config(config: ProxyConfig, architecture: str, separator: int) -> dict[str, Any]:
    """Return config.json as plain data; old and new names where `transformers` renamed a field."""
    common: dict[str, Any] = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "dtype": "float32",
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.sequence_length,
        "rms_norm_eps": _NORM_EPSILON,
        "rope_theta": _ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_BASE},
        "tie_word_embeddings": False,
        "bos_token_id": separator,
        "eos_token_id": separator,
        "pad_token_id": None,  # nosec B105: a token of text
    }
    if architecture == "llama":
        return common | {"intermediate_size": config.active_ffn_width, "head_dim": config.head_dim}
    if architecture == "mixtral":
        return common | {
            "intermediate_size": config.expert_width + config.shared_width,
            "head_dim": config.head_dim,
            "num_local_experts": config.experts,
            "num_experts_per_tok": config.top_k,
            "sliding_window": None,
        }
    return common | {
        "intermediate_size": config.active_ffn_width,  # of dense layers; there are none
        "use_bias": False,
        "moe_intermediate_size": config.expert_width,
        "moe_num_experts": config.experts,
        "moe_k": config.top_k,
        "moe_num_shared_experts": _num_shared(config),
        "moe_layer_start_index": 0,
        "moe_layer_end_index": config.depth - 1,
        "moe_layer_interval": 1,
    }


@torch.no_grad()
def hf_tensors(model: ProxyStack, architecture: str) -> dict[str, Tensor]:
    """Return a stack of one as the checkpoint tensors of an architecture, float32 on the CPU."""
    embedding_VD = model.embedding[0]
    tensors = {
        "model.embed_tokens.weight": F.rms_norm(embedding_VD, (model.config.width,), eps=_NORM_EPSILON),
        "model.norm.weight": model.norm.gain[0],
        "lm_head.weight": embedding_VD,
    }
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        named = {
            "input_layernorm.weight": block.norm1.gain[0],
            "post_attention_layernorm.weight": block.norm2.gain[0],
            **_attention(block, model.config, interleaved=architecture == "ernie4_5_moe"),
            **_feed_forward(block, model.config, architecture),
        }
        tensors |= {f"model.layers.{i}.{name}": tensor for name, tensor in named.items()}
    # A tensor shared by two names cannot be written.
    return {name: t.detach().to("cpu", torch.float32, copy=True).contiguous() for name, t in tensors.items()}


def _attention(block: Block, config: ProxyConfig, *, interleaved: bool) -> dict[str, Tensor]:
    sizes = [heads * config.head_dim for heads in (config.num_heads, config.kv_heads, config.kv_heads)]
    q, k, v = block.attention.qkv[0].split(sizes, dim=1)
    if interleaved:
        q, k = _interleave(q, config.head_dim), _interleave(k, config.head_dim)
    named = {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": block.attention.out[0]}
    return {f"self_attn.{name}.weight": tensor.t() for name, tensor in named.items()}


def _interleave(weight_DH: Tensor, head_dim: int) -> Tensor:
    """Put the two columns that rotate together side by side, in every head."""
    halves = weight_DH.view(weight_DH.shape[0], -1, 2, head_dim // 2)
    return halves.transpose(2, 3).flatten(1)


def _feed_forward(block: Block, config: ProxyConfig, architecture: str) -> dict[str, Tensor]:
    shared_up, shared_down = block.shared.up[0], block.shared.down[0]
    if block.moe is None:
        return _swiglu("mlp", ("gate_proj", "up_proj", "down_proj"), shared_up, shared_down)
    assert isinstance(block.moe, TopKFeedForward)
    router = block.moe.router[0].t()
    experts = list(zip(block.moe.up[0], block.moe.down[0], strict=True))
    if architecture == "mixtral":
        named = {"block_sparse_moe.gate.weight": router}
        for e, (up, down) in enumerate(experts):
            folded = _beside(up, shared_up), torch.cat([down, shared_down])
            named |= _swiglu(f"block_sparse_moe.experts.{e}", ("w1", "w3", "w2"), *folded)
        return named
    named = {"mlp.gate.weight": router, "mlp.moe_statics.e_score_correction_bias": block.moe.bias}
    names = ("gate_proj", "up_proj", "down_proj")
    for e, (up, down) in enumerate(experts):
        named |= _swiglu(f"mlp.experts.{e}", names, up, down)
    # The shared width is a multiple of an expert's there; hidden units of zeros add nothing.
    padding = _num_shared(config) * config.expert_width - config.shared_width
    padded = _beside(shared_up, shared_up.new_zeros(config.width, 2 * padding)), F.pad(shared_down, (0, 0, 0, padding))
    return named | _swiglu("mlp.shared_experts", names, *padded)


def _num_shared(config: ProxyConfig) -> int:
    return -(-config.shared_width // config.expert_width)


def _beside(first_D2F: Tensor, second_D2F: Tensor) -> Tensor:
    """Join the hidden units of two gate-and-up matrices."""
    gates, ups = zip(first_D2F.chunk(2, dim=1), second_D2F.chunk(2, dim=1), strict=True)
    return torch.cat([*gates, *ups], dim=1)


def _swiglu(prefix: str, names: tuple[str, str, str], gate_up_D2F: Tensor, down_FD: Tensor) -> dict[str, Tensor]:
    gate, up = gate_up_D2F.chunk(2, dim=1)
    matrices = (gate, up, down_FD)
    return {f"{prefix}.{name}.weight": matrix.t() for name, matrix in zip(names, matrices, strict=True)}


@dataclass(frozen=True)
class DroppedBias:
    """What a proxy loses when its balancing bias is dropped.

    Attributes:
        rerouted: Share of (token, MoE layer) pairs that choose other experts, given
            the same input of the layer.
        loss: Mean loss with the bias, nats per token.
        loss_without: Mean loss without it.
    """

    rerouted: float
    loss: float
    loss_without: float


@torch.no_grad()
def drop_bias(model: ProxyStack, texts: Sequence[ScoringRows]) -> DroppedBias:
    """Set the balancing bias to zero, in place, and say what that changes on some text."""
    layers = _moe_layers(model)
    changed: dict[TopKFeedForward, list[Tensor]] = {layer: [] for layer in layers}

    def compare(layer: TopKFeedForward, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        probs_NE = (inputs[0][0] @ layer.router[0]).softmax(-1)
        with_bias, without = (p.topk(layer.top_k).indices.sort().values for p in (probs_NE + layer.bias[0], probs_NE))
        changed[layer].append((with_bias != without).any(-1).cpu())

    hooks = [layer.register_forward_hook(compare) for layer in layers]
    loss = _mean_loss(model, texts)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        layer.bias.zero_()
    # What pads a batch is no text.
    mask = torch.from_numpy(np.concatenate([rows.mask[here].ravel() for rows in texts for here in rows.batches()]))
    rerouted = torch.cat([torch.cat(parts)[mask] for parts in changed.values()]).float().mean()
    return DroppedBias(float(rerouted), loss, _mean_loss(model, texts))


def _mean_loss(model: ProxyStack, texts: Sequence[ScoringRows]) -> float:
    return -float(np.concatenate([score(model, rows)[0] for rows in texts]).mean(dtype=np.float64))


def _moe_layers(model: ProxyStack) -> list[TopKFeedForward]:
    return [layer for layer in model.moe_layers() if isinstance(layer, TopKFeedForward)]
