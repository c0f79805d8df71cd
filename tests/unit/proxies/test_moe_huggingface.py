"""Top-k routing equals the sparse blocks of Hugging Face with the same weights."""

import pytest
import torch

from mixopt.proxies.moe import TopKFeedForward

from .test_moe import make_layer

pytest.importorskip("transformers")


@pytest.mark.parametrize("block", ["mixtral", "olmoe"])
def test_topk_equals_the_block_of_hugging_face(block):
    """Same weights, same outputs and input gradients; their matrices are the transposes of ours."""
    theirs = _mixtral_block() if block == "mixtral" else _olmoe_block()
    layer, x = make_layer(TopKFeedForward, num_models=1, width=16, hidden=8)
    with torch.no_grad():
        layer.bias.zero_()
        theirs.gate.weight.copy_(layer.router[0].T)
        theirs.experts.gate_up_proj.copy_(layer.up[0].transpose(1, 2))
        theirs.experts.down_proj.copy_(layer.down[0].transpose(1, 2))
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-6)  # they softmax in float32
    got, expected = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (layer, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def _mixtral_block():
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralSparseMoeBlock(MixtralConfig(**sizes, experts_implementation="eager")).double()


def _olmoe_block():
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
    return OlmoeSparseMoeBlock(OlmoeConfig(**sizes, norm_topk_prob=True, experts_implementation="eager")).double()
