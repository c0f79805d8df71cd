"""Small models, shards and samplers for the tests of the proxies."""

import numpy as np
import torch

from mixopt import Mixture
from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.optim import initial_state
from mixopt.proxies.tokens import MixtureSampler, TokenShard
from mixopt.proxies.train import ProxyRun
from mixopt.storage import write_json

VOCAB = 64


def small_config(**fields):
    defaults = {
        "depth": 1, "width": 32, "head_dim": 16, "experts": 4, "top_k": 2, "sequence_length": 16, "batch_size": 2,
    }  # fmt: skip
    return ProxyConfig(VOCAB, **{**defaults, **fields})


def write_shard(path, *, num_docs=30, length=50, seed=0, alphabet=VOCAB):
    """A shard of documents that walk through the alphabet with a domain's own stride, so they can be learned."""
    rng = np.random.default_rng(seed)
    stride = 1 + 2 * seed
    documents = [
        (rng.integers(alphabet) + stride * np.arange(length + i % 7)) % (alphabet - 1) + 1 for i in range(num_docs)
    ]
    path.mkdir(parents=True)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    np.save(path / "tokens.npy", np.concatenate(documents).astype(np.uint16))
    np.save(path / "offsets.npy", offsets.astype(np.int64))
    meta = {"num_tokens": int(offsets[-1]), "num_docs": num_docs, "num_bytes": int(offsets[-1]) * 2, "separator": 0}
    write_json(path / "meta.json", {**meta, "fingerprint": f"shard-{seed}"})
    return TokenShard(path)


def shards(root, names=("a", "b"), **fields):
    return {name: write_shard(root / name, seed=i, **fields) for i, name in enumerate(names)}


def make_run(name, shards_, config, *, seed, milestones, weights=None):
    names = list(shards_)
    mixture = Mixture.normalized(names, weights or [1.0] * len(names))
    sampler = MixtureSampler(shards_, mixture, seed=seed, sequence_length=config.sequence_length)
    return ProxyRun(name, sampler, tuple(milestones), initial_state(config, seed))


def train(trainer, on_milestone=lambda milestone: None):
    while trainer.active:
        trainer.advance(on_milestone)


CPU = torch.device("cpu")
