"""What a user would train instead of a proxy: mixture-of-experts models of Hugging Face, of the same size.

The shared feed-forward expert, which they do not have, is folded into their routed ones.
With the same total parameters ("total") they have fewer active ones and less to compute
per token than we; with the same active parameters ("active") they are larger.
"""

import itertools
import logging
import os
import sys

# What workers run under (mixopt/execution.py); read by the C library when a process starts.
from mixopt.cluster import ALLOCATOR_SETTINGS

if __name__ != "__mp_main__" and any(name not in os.environ for name in ALLOCATOR_SETTINGS):
    os.environ.update(ALLOCATOR_SETTINGS, OMP_NUM_THREADS="1")
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)

KINDS = ("mixtral", "olmoe", "qwen3_moe")
KERNELS = ("eager", "grouped_mm")
VARIANTS = tuple(itertools.product(KINDS, KERNELS))


def build(kind, kernel, config, fold="total"):
    """A model of Hugging Face with the sizes of a proxy."""
    import transformers

    folded = config.expert_width + config.shared_width // (config.experts if fold == "total" else config.top_k)
    common = {
        "vocab_size": config.vocab_size, "hidden_size": config.width, "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.sequence_length, "tie_word_embeddings": True, "use_cache": False,
        "num_experts_per_tok": config.top_k, "attn_implementation": "sdpa", "pad_token_id": None,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if kind == "mixtral":
        sizes = {"intermediate_size": folded, "num_local_experts": config.experts, "head_dim": config.head_dim}
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**common, **sizes))
    elif kind == "olmoe":
        sizes = {"intermediate_size": folded, "num_experts": config.experts, "norm_topk_prob": True}
        model = transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**common, **sizes))
    else:
        sizes = {"moe_intermediate_size": folded, "num_experts": config.experts, "head_dim": config.head_dim}
        common |= {"norm_topk_prob": True, "decoder_sparse_step": 1}
        model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**common, **sizes))
    model.set_experts_implementation(kernel)
    return model


class PeerTrainer:
    """Forward, backward, clip and fused AdamW, as in our trainer; averaged weights if asked for."""

    def __init__(self, model, config, *, rate=None, average=False):
        self.model, self.config, self.steps = model, config, 0
        self.rate = rate or config.learning_rate
        matrices = [p for p in model.parameters() if p.dim() > 1]
        gains = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.95), fused=True)
        self.average = [p.detach().clone() for p in model.parameters()] if average else None

    def step(self, tokens):
        """One step on (B, L + 1) tokens; returns the loss."""
        logits = self.model(input_ids=tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.steps + 1) / self.config.warmup_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.average is not None:
            decay = min(self.config.ema, self.steps / (9 + self.steps))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], 1 - decay)
        return float(loss.detach())
