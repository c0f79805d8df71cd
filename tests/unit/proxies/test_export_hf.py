"""An exported folder computes what the proxy computes, and is written whole or not at all."""

import json
import math
import os
import sys
from dataclasses import replace

import pytest
import torch

from mixopt.errors import ConfigError
from mixopt.proxies.export_folder import write_folder
from mixopt.proxies.export_hf import choose_architecture, drop_bias, hf_tensors
from mixopt.proxies.model import ProxyStack
from mixopt.proxies.scoring import ScoringRows
from mixopt.proxies.tokenizer import TextTokenizer, train_tokenizer
from mixopt.proxies.tokens import TokenShard

from .builders import small_config

os.environ.setdefault("HF_HUB_OFFLINE", "1")
VOCAB = 260
DOCUMENTS = ["one small document of words. ", "another größeres one 🙂. "] * 20
# What makes a proxy of each architecture; `bias` is the size of its balancing bias.
SHAPES = {
    "mixtral": {"router": "topk", "depth": 2},
    "ernie4_5_moe": {"router": "topk", "depth": 2, "bias": 0.3},
    "llama": {"router": "dense", "depth": 2},
}


def proxy(*, bias=0.0, **fields):
    """A proxy none of whose parameters is trivial, with logits of size 1."""
    config = replace(small_config(**fields), vocab_size=VOCAB)
    draw = torch.Generator().manual_seed(0)
    model = ProxyStack(config, 1).initialize([draw]).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("gain", "out", "down")):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.embedding.mul_(10)
    for layer in model.moe_layers():
        layer.bias.copy_(bias * torch.randn(layer.bias.shape, generator=draw))
    return model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer({"a": DOCUMENTS}, VOCAB, path)
    return TextTokenizer(path)


def export(model, folder, tokenizer, *, asked="auto", **fields):
    architecture = choose_architecture(model, asked)
    write_folder(model, folder, architecture=architecture, tokenizer=tokenizer, card="# A proxy\n", **fields)
    return architecture


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- the law ------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"shared_width": 24, "width": 64, "kv_heads": 2, "top_k": 3}], ids=["derived", "odd"]
)
@pytest.mark.parametrize("architecture", SHAPES)
def test_transformers_computes_the_same_logits(tmp_path, tokenizer, architecture, fields):
    transformers = pytest.importorskip("transformers")
    model = proxy(**SHAPES[architecture], **fields)
    assert export(model, tmp_path / "hf", tokenizer) == architecture
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = torch.randint(VOCAB, (1, 2, 16), generator=torch.Generator().manual_seed(1))
    ours = (model(tokens) @ model.embedding.transpose(1, 2)).view(2, 16, VOCAB)
    assert theirs.config.model_type == architecture
    assert ours.std() > 0.5
    assert (theirs(tokens[0]).logits - ours).abs().max() < 1e-4


def test_the_tokenizer_begins_every_text_as_training_does(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    export(proxy(), tmp_path / "hf", tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text, ours in zip(DOCUMENTS[:2], tokenizer.encode(DOCUMENTS[:2]), strict=True):
        ids = theirs(text).input_ids
        assert ids == [tokenizer.separator, *ours.ids]
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert len(theirs) == VOCAB
    assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.separator


def test_every_parameter_is_written():
    """By count: folding repeats the shared expert, and the input embedding has a copy of its own."""
    for architecture, fields in SHAPES.items():
        model = proxy(**fields)
        c, count = model.config, sum(t.numel() for t in hf_tensors(model, architecture).values())
        own = sum(p.numel() for p in model.parameters()) + VOCAB * c.width
        if architecture == "mixtral":
            own += c.depth * (c.experts - 1) * 3 * c.width * c.shared_width
        if architecture == "ernie4_5_moe":
            own += c.depth * c.experts  # the bias
        assert count == own


def test_transformers_is_not_needed_to_export(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # its import fails now
    assert export(proxy(), tmp_path / "hf", tokenizer) == "mixtral"


# --- the bias -----------------------------------------------------------------


def test_dropping_the_bias_says_what_it_changes(tmp_path, tokenizer):
    shard = TokenShard.build(tmp_path, "a", DOCUMENTS, tokenizer=tokenizer, key={})
    texts = [ScoringRows.cut(shard, 16)]
    without, with_bias = proxy(depth=2), proxy(depth=2, bias=0.3)
    unchanged = drop_bias(without, texts)
    assert unchanged.rerouted == 0
    assert unchanged.loss == unchanged.loss_without
    changed = drop_bias(with_bias, texts)
    assert 0.1 < changed.rerouted < 1
    assert changed.loss != changed.loss_without
    assert changed.loss_without == pytest.approx(unchanged.loss, rel=1e-6)
    assert math.isfinite(changed.loss)
    assert choose_architecture(with_bias) == "mixtral"


def test_relu_routing_has_no_counterpart():
    model = ProxyStack(small_config(router="relu"), 1)
    for asked in ("auto", "mixtral"):
        with pytest.raises(
            ConfigError, match=r"proxy\.router: no architecture .* 'relu' .*; .* train one with router: topk"
        ):
            choose_architecture(model, asked)


def test_mixtral_can_be_asked_for_and_nothing_else():
    assert choose_architecture(proxy(bias=0.3), "mixtral") == "mixtral"
    with pytest.raises(ConfigError, match="--architecture: expected auto or mixtral, got 'gpt2'"):
        choose_architecture(proxy(), "gpt2")
    with pytest.raises(ConfigError, match="dense proxy is written as llama"):
        choose_architecture(proxy(router="dense"), "mixtral")


# --- the folder ---------------------------------------------------------------


def test_the_folder_holds_what_hubs_and_people_look_for(tmp_path, tokenizer):
    export(proxy(), tmp_path / "a" / "hf", tokenizer)
    assert names(tmp_path / "a") == ["hf"]
    assert names(tmp_path / "a" / "hf") == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((tmp_path / "a" / "hf" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path, tokenizer):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"--out: .* holds what no export wrote \(thesis.tex\)"):
            export(proxy(), tmp_path, tokenizer, overwrite=overwrite)
    assert names(tmp_path) == ["thesis.tex"]


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path, tokenizer):
    (tmp_path / "hf").mkdir()
    export(proxy(), tmp_path / "hf", tokenizer)
    with pytest.raises(ConfigError, match="holds an export already; replace it with --force"):
        export(proxy(router="dense"), tmp_path / "hf", tokenizer)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "mixtral"
    export(proxy(router="dense"), tmp_path / "hf", tokenizer, overwrite=True)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llama"
    assert names(tmp_path) == ["hf"]


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path, tokenizer):
    export(proxy(), tmp_path / "hf", tokenizer)
    before = {name: (tmp_path / "hf" / name).read_bytes() for name in names(tmp_path / "hf")}
    with pytest.raises(TypeError):
        write_folder(
            proxy(router="dense"), tmp_path / "hf", architecture="llama", tokenizer=tokenizer, card=None, overwrite=True
        )
    assert {name: (tmp_path / "hf" / name).read_bytes() for name in names(tmp_path / "hf")} == before
    assert names(tmp_path) == ["hf"]


def test_a_file_in_the_way_is_named(tmp_path, tokenizer):
    (tmp_path / "hf").write_text("a file")
    with pytest.raises(ConfigError, match=r"--out: .*hf is a file; give a folder"):
        export(proxy(), tmp_path / "hf", tokenizer)
