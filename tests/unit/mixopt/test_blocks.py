"""Mixed probabilities in blocks: exact where single precision ends, and the prefix posterior."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mixopt import ConfigError, Constraints, Objective, mixing
from mixopt import blocks as blocks_module
from mixopt.blocks import PLAIN, BlockStore, Temper, read_blocks
from mixopt.mde import MDE, minimize
from mixopt.passages import Passages
from mixopt.scores import ExpertScores

K, T = 4, 3000
NAMES = tuple("abcd")
OFFSETS = np.array([0, 1, 7, 150, 150, 1100, 2990, T])  # short, empty and long documents


def logprobs(num_tokens=T, seed=0):
    rng = np.random.default_rng(seed)
    quarter = rng.choice(K, num_tokens, p=[0.4, 0.3, 0.2, 0.1])
    skill = np.where(quarter == np.arange(K)[:, None], -0.8, -2.5)
    return (skill - rng.exponential(1.0, (K, num_tokens))).astype(np.float32)


def scored(array=None, offsets=OFFSETS):
    array = logprobs() if array is None else array
    return ExpertScores(Passages("x", offsets), NAMES[: len(array)], tuple(array))


def ensemble(temper=PLAIN, **kwargs):
    return MDE(NAMES, [scored(**kwargs)], temper=temper)


def mixtures(num=10, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(K), num)


def reference(weights, temper, array=None, offsets=OFFSETS):
    """The formula of METHODS 1.4 in double precision, differentiable, one document at a time."""
    logs_KT = torch.tensor(logprobs() if array is None else array, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for begin, end in pairwise(offsets):
        part_KT = logs_KT[:, begin:end]
        sums_KT = torch.cumsum(part_KT, 1) - part_KT
        evidence_KT = temper.tau * (sums_KT - sums_KT.amax(0)) if end > begin else sums_KT
        evidence_KT = evidence_KT.clamp_min(-temper.cap)
        joint = torch.logsumexp(evidence_KT + part_KT + weights.log()[:, None], 0)
        # At 0 the second term is the logarithm of the sum of weights, which is 1: plain MDE leaves it out.
        prior = torch.logsumexp(evidence_KT + weights.log()[:, None], 0) if temper.tau else torch.zeros(1)
        total = total - (joint - prior).sum()
    return total / logs_KT.shape[1]


TEMPERS = [PLAIN, Temper(0.05), Temper(0.3, cap=2.0), Temper(1.0)]


# --- against the formula ---------------------------------------------------------


@pytest.mark.parametrize("temper", TEMPERS, ids=str)
def test_losses_agree_with_the_formula(temper):
    exact = [float(reference(torch.tensor(row), temper)) for row in mixtures()]
    assert ensemble(temper).predict(mixtures())[:, 0] == pytest.approx(exact, abs=2e-7)


@pytest.mark.parametrize("temper", TEMPERS, ids=str)
def test_gradient_and_hessian_agree_with_automatic_differentiation(temper):
    row = torch.tensor(mixtures()[0])
    slopes = torch.autograd.functional.jacobian(lambda w: reference(w, temper), row)
    curvature = torch.autograd.functional.hessian(lambda w: reference(w, temper), row)
    mde = ensemble(temper)
    assert mde.gradient(row.numpy())[0, 0] == pytest.approx(slopes.numpy(), rel=1e-6, abs=1e-7)
    assert mde.hessian(row.numpy(), "loss/x") == pytest.approx(curvature.numpy(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("temper", TEMPERS[1:], ids=str)
def test_gradient_agrees_with_finite_differences(temper):
    mde, row, step = ensemble(temper), np.array([[0.4, 0.3, 0.2, 0.1]]), 1e-2
    slopes = [(mde.predict(row + step * e) - mde.predict(row - step * e))[0, 0] / (2 * step) for e in np.eye(K)]
    assert mde.gradient(row)[0, 0] == pytest.approx(np.array(slopes), rel=2e-2, abs=2e-3)


# --- blocks and tiles ------------------------------------------------------------


@pytest.mark.parametrize("temper", TEMPERS, ids=str)
@pytest.mark.parametrize("block", [64, 1000, 2999])
def test_the_block_size_changes_nothing(monkeypatch, temper, block):
    # Only the grouping of products differs: single precision, averaged over 12,000 tokens.
    array, offsets = logprobs(12_000), OFFSETS * 4
    whole = ensemble(temper, array=array, offsets=offsets).predict(mixtures())
    monkeypatch.setattr(blocks_module, "BLOCK_TOKENS", block)
    parts = ensemble(temper, array=array, offsets=offsets).predict(mixtures())
    assert parts == pytest.approx(whole, rel=1e-9)


def test_many_mixtures_predict_like_each_one_alone():
    weights = mixtures(1500)
    together = ensemble().predict(weights)[[0, 700, 1499]]
    assert together == pytest.approx(
        np.concatenate([ensemble().predict(weights[[m]]) for m in (0, 700, 1499)]), rel=1e-7
    )


def test_blocks_that_are_not_kept_predict_the_same():
    store = BlockStore(PLAIN, room=0)
    kept = BlockStore(PLAIN)
    assert store.blocks(scored()) is not store.blocks(scored())
    assert kept.blocks(scored()) is kept.blocks(scored())
    sums = [sum(mixing.log_sums(mixtures(), b) for b in s.blocks(scored())) for s in (store, kept)]
    assert sums[0].tolist() == sums[1].tolist()


# --- where single precision ends -----------------------------------------------


@pytest.mark.parametrize("gap", [12.0, 60.0, 90.0, 800.0])
@pytest.mark.parametrize("num_tokens", [1, 63, 1000])
def test_an_expert_without_the_others_has_its_own_loss_however_bad(gap, num_tokens):
    array = logprobs(num_tokens)
    array[0] -= np.float32(gap)
    own = -array.mean(axis=1, dtype=np.float64)
    mde = ensemble(array=array, offsets=np.array([0, num_tokens]))
    assert mde.predict(np.eye(K))[:, 0] == pytest.approx(own, rel=1e-7, abs=1e-6)


def test_a_tiny_weight_on_the_only_good_expert_is_exact():
    array = logprobs(2000)
    array[1:] -= 200
    row = np.array([1e-30, 0.4, 0.3, 0.3])
    exact = float(reference(torch.tensor(row), PLAIN, array, np.array([0, 2000])))
    assert ensemble(array=array, offsets=np.array([0, 2000])).predict(row)[0, 0] == pytest.approx(exact, rel=1e-7)


# --- the prefix ------------------------------------------------------------------


def test_without_temper_the_prediction_is_bitwise_plain():
    plain, zero = ensemble(), ensemble(Temper(0.0, cap=3.0))
    assert zero.predict(mixtures()).tobytes() == plain.predict(mixtures()).tobytes()
    assert zero.gradient(mixtures()).tobytes() == plain.gradient(mixtures()).tobytes()


def test_at_temper_one_whole_documents_telescope():
    # The posterior predictive of a mixture of documents: -sum log sum_k w_k p_k(document).
    documents = np.stack([logprobs()[:, a:b].sum(axis=1, dtype=np.float64) for a, b in pairwise(OFFSETS)])
    peak = documents.max(axis=1, keepdims=True)
    exact = [-(peak[:, 0] + np.log(np.exp(documents - peak) @ row)).sum() / T for row in mixtures()]
    assert ensemble(Temper(1.0)).predict(mixtures())[:, 0] == pytest.approx(exact, abs=2e-7)


@pytest.mark.parametrize("temper", TEMPERS[1:], ids=str)
def test_documents_do_not_know_of_each_other(temper):
    # Swapping two documents permutes the tokens of the sum, whatever stood before them.
    parts = [logprobs()[:, :1000], logprobs()[:, 1000:]]
    one = ensemble(temper, array=np.concatenate(parts, axis=1), offsets=np.array([0, 1000, T]))
    two = ensemble(temper, array=np.concatenate(parts[::-1], axis=1), offsets=np.array([0, T - 1000, T]))
    assert one.predict(mixtures()) == pytest.approx(two.predict(mixtures()), rel=1e-7)


def test_documents_of_one_token_have_no_prefix():
    offsets = np.arange(T + 1)
    assert ensemble(Temper(1.0), offsets=offsets).predict(mixtures()) == pytest.approx(ensemble().predict(mixtures()))


def test_a_cap_near_zero_is_nearly_plain():
    capped = ensemble(Temper(1.0, cap=1e-6)).predict(mixtures())
    assert capped == pytest.approx(ensemble().predict(mixtures()), abs=1e-5)
    assert np.abs(ensemble(Temper(1.0)).predict(mixtures()) - capped).max() > 0.01


@pytest.mark.parametrize("temper", TEMPERS, ids=str)
def test_permuting_the_domains_permutes_the_answer(temper):
    order = [2, 0, 3, 1]
    swapped = ensemble(temper, array=logprobs()[order])
    assert swapped.predict(mixtures()[:, order]) == pytest.approx(ensemble(temper).predict(mixtures()), rel=1e-7)


@pytest.mark.parametrize("temper", TEMPERS, ids=str)
def test_an_expert_added_at_weight_zero_changes_nothing(temper):
    # With temper it may be the expert with the most evidence, to which a cap is relative: so no cap here.
    temper = Temper(temper.tau)
    fifth = np.concatenate([logprobs(), logprobs(seed=1)[:1]])
    more = MDE((*NAMES, "e"), [ExpertScores(Passages("x", OFFSETS), (*NAMES, "e"), tuple(fifth))], temper=temper)
    wider = np.column_stack([mixtures(), np.zeros(10)])
    assert more.predict(wider) == pytest.approx(ensemble(temper).predict(mixtures()), rel=1e-7)
    assert more.gradient(wider)[..., :K] == pytest.approx(ensemble(temper).gradient(mixtures()), rel=1e-4)


def test_with_temper_the_optimum_is_no_worse_than_that_without_and_not_certified():
    objective = Objective.parse("loss/x", ["loss/x"])
    mde, simplex = ensemble(Temper(0.3)), Constraints.simplex(NAMES)
    best = minimize(mde, objective, simplex)
    plain = minimize(mde.with_temper(PLAIN), objective, simplex)
    assert best.value <= float(mde.predict(plain.mixture.weights)[0, 0]) + 1e-9
    assert (best.gap, plain.gap < 1e-6) == (np.inf, True)


@pytest.mark.parametrize("values", [(-0.1, 1.0), (1.5, 1.0), (0.5, 0.0), (np.nan, 1.0), (0.5, np.nan)])
def test_a_temper_out_of_range_is_refused(values):
    with pytest.raises(ConfigError, match=r"expected tau in \[0, 1\] and cap > 0"):
        Temper(*values)


def test_blocks_can_end_where_they_are_asked_to():
    found = list(read_blocks(scored(), edges=[0, 10, 2000, T]))
    assert [len(b) for b in found] == [10, 1990, 1000]
