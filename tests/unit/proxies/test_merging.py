"""Merged weights: exact at the experts, differentiable, and refused where weights have no common origin."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import Domain, EvalSet, Ladder, Mixture, MixtureError, Role, Status, StudyError, Trial
from mixopt.protocols import TrialResult
from mixopt.proxies.checkpoint import ModelState, save_states
from mixopt.proxies.evaluators import ProxyEvaluator
from mixopt.proxies.merging import STACK, MergedWeights, load_merged
from mixopt.proxies.optim import initial_state
from mixopt.proxies.scoring import ScoringRows, score
from mixopt.proxies.train import restore_average
from mixopt.study import Header, Study
from mixopt.warm_start import WarmStart

from .builders import CPU, small_config, write_shard

torch.set_num_threads(1)

NAMES = ("a", "b", "c")
SETS = ("x", "y")
UNIFORM = np.full((1, 3), 1 / 3)


def an_expert(config, seed):
    """A model that differs from its seed model, whose outputs start at zero, in every tensor."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in initial_state(config, 0).tensors.items()
    }
    return ModelState(1, tensors)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    shards = {name: write_shard(folder / name, seed=i, num_docs=4) for i, name in enumerate(SETS)}
    return {name: ScoringRows.cut(shard, 16) for name, shard in shards.items()}


def merged(rows, names=NAMES, order=(0, 1, 2), **fields):
    config = small_config(**fields)
    return MergedWeights(names, config, [an_expert(config, i) for i in order], rows, CPU)


@pytest.mark.parametrize("router", ["topk", "relu", "dense"])
def test_at_a_vertex_it_is_that_experts_own_loss(rows, router):
    found = merged(rows, router=router)
    for k, losses in enumerate(found.predict(np.eye(3))):
        own = restore_average(found.config, found.experts[k], CPU)
        assert np.allclose(losses, [-score(own, cut).mean() for cut in rows.values()], atol=1e-5)


def test_experts_that_are_equal_predict_their_loss_for_every_mixture(rows):
    found = merged(rows, order=(1, 1, 1))
    losses = found.predict(np.random.default_rng(0).dirichlet(np.ones(3), 4))
    assert np.allclose(losses, losses[0], atol=1e-5)


def test_mixtures_predicted_together_and_one_by_one_agree(rows):
    weights = np.random.default_rng(0).dirichlet(np.ones(3), STACK + 3)
    found = merged(rows)
    assert np.allclose(found.predict(weights), np.concatenate([found.predict(w[None]) for w in weights]), atol=1e-5)


def test_a_permutation_of_the_domains_permutes_weights_and_gradient(rows):
    order, weights = (2, 0, 1), np.array([[0.5, 0.2, 0.3]])
    one, other = merged(rows), merged(rows, tuple(NAMES[i] for i in order), order)
    assert np.allclose(other.predict(weights[:, order]), one.predict(weights), atol=1e-5)
    assert np.allclose(other.gradient(weights[:, order]), one.gradient(weights)[..., order], atol=1e-4)


@pytest.mark.parametrize("fields", [{"router": "topk", "top_k": 4}, {"router": "relu"}, {"router": "dense"}])
def test_the_gradient_is_that_of_finite_differences(rows, fields):
    """Losses are float32 sums: 1e-6 of 4 nats over steps of 4e-3 leave 1e-3.

    Top-k with a choice of experts jumps where a token changes them, so all are chosen here.
    """
    found, step = merged(rows, **fields), 2e-3
    moved = np.concatenate([UNIFORM + sign * step * np.eye(3) for sign in (1, -1)])
    losses = found.predict(moved).reshape(2, 3, 2)
    slopes = (losses[0] - losses[1]).T / (2 * step)
    assert np.abs(slopes).max() > 0.05
    assert np.allclose(found.gradient(UNIFORM)[0], slopes, atol=5e-3)


def test_what_is_not_scored_counts_for_nothing(rows):
    """With half of the tokens to score, the loss is their mean, and the two halves' gradients average to the whole's."""
    cut, parts = rows["x"], []
    for half in (0, 1):
        mask = cut.mask.copy()
        mask[cut.mask] = np.arange(cut.mask.sum()) % 2 == half
        parts.append(merged({"x": replace(cut, mask=mask)}))
    whole = merged({"x": cut})
    shares = [part.rows["x"].mask.sum() / cut.mask.sum() for part in parts]
    for method in ("predict", "gradient"):
        halves = sum(share * getattr(part, method)(UNIFORM) for share, part in zip(shares, parts, strict=True))
        assert np.allclose(halves, getattr(whole, method)(UNIFORM), atol=1e-5)


def test_an_expert_of_another_shape_is_refused(rows):
    config, other = small_config(), small_config(expert_width=8)
    experts = [an_expert(config, 0), an_expert(config, 1), an_expert(other, 2)]
    with pytest.raises(StudyError, match=r"expert of c .*expected blocks.* one model shape"):
        MergedWeights(NAMES, config, experts, rows, CPU)


def test_weights_and_experts_must_be_as_many_as_domains(rows):
    found = merged(rows)
    with pytest.raises(MixtureError, match="expected 3 weights per mixture, got 2"):
        found.predict(np.array([[0.5, 0.5]]))
    with pytest.raises(MixtureError, match="got 2; train the missing"):
        replace(found, experts=found.experts[:2])


# --- from a study ------------------------------------------------------------

LADDER = Ladder.from_flops([("low", "m", 9, 128, 1.0), ("top", "m", 9, 512, 4.0)], 0.05)
HEADER = Header(
    name="warm", seed=1, domains=tuple(Domain(name, 1500, 30, 3000) for name in NAMES),
    eval_sets=tuple(EvalSet(name, 200, 400) for name in SETS), ladder=LADDER, tokenizer="t",
    objective={"expression": "mean(loss/*)", "unit": "nats_per_token"}, budget=1.0, experts_fidelity="top",
    warm_start=WarmStart("uniform", {"m": "top"}),
)  # fmt: skip


def a_study(folder, **changes):
    """Finished experts on disk, each forked from the seed model; `changes` are {domain: fields of its trial}."""
    study, config = Study(folder), small_config()
    study.begin(HEADER)
    for i, name in enumerate(NAMES):
        fields = {"fidelity": "top", "parent": "seed-m", "parent_kind": "forked", **changes.get(name, {})}
        mixture = Mixture.vertex(NAMES, name)
        trial = Trial(f"expert-{name}", Role.EXPERT, mixture, seed=i, proposed_by="experts", label=name, **fields)
        study.propose([trial])
        study.finish(TrialResult(trial.id, Status.DONE, ()))
        save_states(study.files.trial(trial.id) / "state.safetensors", [an_expert(config, i)], {})
    for i, name in enumerate(SETS):
        write_shard(study.files.tokens / name, seed=i, num_docs=4)
    evaluator = ProxyEvaluator(
        ladder=LADDER, models={"m": config}, shards={}, eval_shards={name: name for name in SETS},
        data={}, tokenizer="t", experts_fidelity="top", device="cpu",
    )  # fmt: skip
    return study, evaluator


def test_the_experts_of_a_study_are_merged_from_its_files(rows, tmp_path):
    found = load_merged(*a_study(tmp_path))
    assert (found.domains, found.columns) == (NAMES, ("loss/x", "loss/y"))
    assert np.allclose(found.predict(UNIFORM), merged(rows).predict(UNIFORM), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent": None, "parent_kind": None}, "one seed model, got a from seed-m, b from scratch.*set warm_start"),
        ({"parent": "seed-n"}, "one seed model, got a from seed-m, b from seed-n"),
        ({"fidelity": "low"}, "at one rung, got a at top, b at low"),
    ],
)
def test_experts_without_a_common_origin_are_refused(tmp_path, change, message):
    with pytest.raises(StudyError, match=message):
        load_merged(*a_study(tmp_path, b=change))


def test_a_missing_expert_and_missing_weights_are_named(tmp_path):
    study, evaluator = a_study(tmp_path)
    (study.files.trial("expert-b") / "state.safetensors").unlink()
    with pytest.raises(StudyError, match="the weights of expert-b are gone"):
        load_merged(study, evaluator)
    other = Study(tmp_path / "other")
    other.begin(HEADER)
    with pytest.raises(StudyError, match="no finished expert for a, b, c"):
        load_merged(other, evaluator)
