"""Scoring: every token once, the mean is the loss, documents do not see each other."""

from dataclasses import fields, replace

import numpy as np
import torch

from mixopt.proxies.model import ProxyStack
from mixopt.proxies.scoring import ScoringRows, score

from .builders import small_config, write_shard


def _model(seed=0):
    return ProxyStack(small_config(), 1).initialize([torch.Generator().manual_seed(seed)])


def test_every_token_is_scored_once(tmp_path):
    shard = write_shard(tmp_path / "a", num_docs=9, length=37)
    rows = ScoringRows.cut(shard, 16)
    assert rows.mask.sum() == shard.meta["num_tokens"]
    assert np.array_equal(rows.targets[rows.mask], shard.tokens.astype(np.int64))
    assert score(_model(), rows).shape == (1, shard.meta["num_tokens"])


def test_log_probabilities_are_a_distribution(tmp_path):
    shard = write_shard(tmp_path / "a", num_docs=3)
    rows, model = ScoringRows.cut(shard, 16), _model()
    total = np.zeros((1, shard.meta["num_tokens"]))
    for token in range(64):
        total += np.exp(score(model, replace(rows, targets=np.full_like(rows.targets, token))))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_a_document_is_scored_the_same_whatever_stands_before_it(tmp_path):
    shard = write_shard(tmp_path / "a", num_docs=4, length=20)
    rows, model = ScoringRows.cut(shard, 16), _model()
    with torch.no_grad():
        model.blocks[0].attention.out.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    reverse = ScoringRows(*(getattr(rows, f.name)[::-1].copy() for f in fields(rows)))
    np.testing.assert_allclose(np.sort(score(model, rows)), np.sort(score(model, reverse)), rtol=1e-5)
