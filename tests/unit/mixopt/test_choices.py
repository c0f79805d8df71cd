"""Multiple choice: accuracy of mixtures from experts' option scores, its smooth score, and chance."""

from math import comb

import numpy as np
import pytest
import torch

from mixopt import ConfigError, Constraints, MixtureError, Objective, StudyError, choices
from mixopt.blocks import PLAIN, Temper
from mixopt.choices import beats_chance, chance, chance_p_value, measure
from mixopt.mde import MDE, minimize
from mixopt.passages import Passages
from mixopt.scores import ExpertScores

K, Q = 3, 60
NAMES = tuple("abc")


def task(num_questions=Q, seed=0):
    """Questions with two to five options of one to nine tokens."""
    rng = np.random.default_rng(seed)
    num_options = rng.integers(2, 6, num_questions)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 10, num_options.sum()))])
    return Passages("quiz", offsets, "f", "multiple_choice", 9, num_options, rng.integers(0, num_options))


def logprobs(passages, seed=0):
    """(K, T): each expert knows the answers to some of the questions."""
    rng = np.random.default_rng(seed)
    known = np.repeat(rng.random((K, len(passages.answers))) < [[0.6], [0.4], [0.2]], passages.num_options, axis=1)
    options = np.arange(len(passages.offsets) - 1)
    right = np.isin(options, passages.right_options)
    skill = np.where(known & right, -1.0, -1.6)
    tokens = np.repeat(skill, np.diff(passages.offsets), axis=1)
    return (tokens - rng.exponential(0.5, tokens.shape)).astype(np.float32)


def ensemble(passages=None, temper=PLAIN, **kwargs):
    passages = passages or task()
    return MDE(NAMES, [ExpertScores(passages, NAMES, tuple(logprobs(passages)))], temper=temper, **kwargs)


def mixtures(num=12, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(K), num)


def smooth(weights, passages, sharpness=choices.SHARPNESS):
    """The smooth score in double precision, question by question, differentiable."""
    logs_KT = torch.tensor(logprobs(passages), dtype=torch.float64)
    mixed_T = torch.logsumexp(logs_KT + weights.log()[:, None], 0)
    options = [mixed_T[a:b].mean() for a, b in zip(passages.offsets[:-1], passages.offsets[1:], strict=True)]
    total, first = torch.zeros((), dtype=torch.float64), 0
    for num, answer in zip(passages.num_options, passages.answers, strict=True):
        total = total + torch.softmax(sharpness * torch.stack(options[first : first + num]), 0)[answer]
        first += num
    return total / len(passages.answers)


# --- what a mixture shows on a task ----------------------------------------------


def test_one_model_is_measured_by_hand():
    # Two questions of two options; per token -1 against -2, and -3 against -2: one right, margins 1 and -1.
    passages = Passages("q", np.array([0, 1, 3, 4, 6]), "f", "multiple_choice", 9, np.array([2, 2]), np.array([0, 0]))
    found = measure(np.array([-1.0, -2.0, -2.0, -3.0, -1.0, -3.0]), passages, sharpness=1.0)
    assert found.accuracy[0] == 0.5
    assert found.margin[0] == pytest.approx(0.0)
    assert found.score[0] == pytest.approx(0.5)


def test_an_options_length_does_not_matter_only_its_mean():
    passages = Passages("q", np.array([0, 1, 10]), "f", "multiple_choice", 9, np.array([2]), np.array([1]))
    assert measure(np.full(10, -2.0) + 0.5 * (np.arange(10) > 0), passages).accuracy.tolist() == [1.0]


def test_ties_share_a_question():
    passages = Passages("q", np.arange(7), "f", "multiple_choice", 9, np.array([3, 3]), np.array([0, 1]))
    found = measure(np.array([-1.0, -1.0, -2.0, -1.0, -2.0, -1.0]), passages)
    assert found.accuracy[0] == pytest.approx((1 / 2 + 0) / 2)


def test_a_uniform_scorer_is_at_chance():
    passages = task()
    found = measure(np.full(passages.num_tokens, -np.log(1024), dtype=np.float32), passages)
    assert found.accuracy[0] == pytest.approx(chance(passages.num_options))
    assert found.score[0] == pytest.approx(chance(passages.num_options))
    assert found.margin[0] == pytest.approx(0.0, abs=1e-9)


def test_at_a_vertex_the_ensemble_is_that_expert():
    passages = task()
    alone, mixed = measure(logprobs(passages), passages), ensemble().measures(np.eye(K), "quiz")
    assert mixed.accuracy.tolist() == alone.accuracy.tolist()
    assert mixed.margin == pytest.approx(alone.margin, abs=1e-6)
    assert mixed.score == pytest.approx(alone.score, abs=1e-6)


@pytest.mark.parametrize("temper", [PLAIN, Temper(0.3), Temper(1.0, cap=1.0)], ids=str)
def test_many_parts_and_mixtures_add_up(monkeypatch, temper):
    whole = ensemble(temper=temper).measures(mixtures(300), "quiz")
    monkeypatch.setattr(choices, "_TOKENS_AT_ONCE", 40)
    parts = ensemble(temper=temper).measures(mixtures(300), "quiz")
    assert parts.accuracy == pytest.approx(whole.accuracy)
    assert parts.margin == pytest.approx(whole.margin, abs=1e-6)
    assert parts.score == pytest.approx(whole.score, abs=1e-6)


def test_the_smooth_score_agrees_with_the_formula():
    exact = [float(smooth(torch.tensor(row), task())) for row in mixtures()]
    assert ensemble().predict(mixtures(), ["score/quiz"])[:, 0] == pytest.approx(exact, abs=1e-6)


def test_the_smooth_scores_gradient_agrees_with_automatic_differentiation():
    row = torch.tensor(mixtures()[0])
    slopes = torch.autograd.functional.jacobian(lambda w: smooth(w, task()), row)
    assert ensemble().gradient(row.numpy(), ["score/quiz"])[0, 0] == pytest.approx(slopes.numpy(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("temper", [Temper(0.3), Temper(1.0, cap=1.0)], ids=str)
def test_with_temper_its_gradient_agrees_with_finite_differences(temper):
    mde, row, step = ensemble(temper=temper), np.array([[0.5, 0.3, 0.2]]), 1e-2
    values = [[mde.predict(row + s * step * e, ["score/quiz"])[0, 0] for s in (1, -1)] for e in np.eye(K)]
    slopes = np.diff(values, axis=1)[:, 0] / (-2 * step)
    assert mde.gradient(row, ["score/quiz"])[0, 0] == pytest.approx(slopes, rel=2e-2, abs=2e-3)


def test_the_sharper_the_smooth_score_the_nearer_to_the_accuracy():
    accuracy = ensemble().measures(mixtures(), "quiz").accuracy
    off = [
        np.abs(ensemble(sharpness=b).predict(mixtures(), ["score/quiz"])[:, 0] - accuracy).max() for b in (1, 30, 1e5)
    ]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-3


def test_the_loss_of_a_task_is_that_of_the_right_options():
    passages = task()
    own = -logprobs(passages)[:, passages.counted].mean(axis=1, dtype=np.float64)
    mde = ensemble()
    assert mde.columns == ("loss/quiz", "score/quiz")
    assert mde.predict(np.eye(K), ["loss/quiz"])[:, 0] == pytest.approx(own, abs=1e-6)
    assert mde.num_tokens("loss/quiz") == passages.counted.sum()
    # Euler: the loss is a mean of logarithms of linear forms.
    assert mixtures()[0] @ mde.gradient(mixtures()[:1], ["loss/quiz"])[0, 0] == pytest.approx(-1, abs=1e-6)
    assert mixtures()[0] @ mde.hessian(mixtures()[0], "loss/quiz") @ mixtures()[0] == pytest.approx(1, abs=1e-6)


def test_a_score_is_maximized_where_it_is_in_the_objective():
    objective = Objective.parse("score/quiz", ["loss/quiz", "score/quiz"])
    best = minimize(ensemble(), objective, Constraints.simplex(NAMES))
    others = ensemble().predict(mixtures(300), ["score/quiz"])[:, 0]
    assert -best.value >= others.max() - 1e-4
    assert best.gap == np.inf


def test_a_text_has_no_accuracy():
    mde = MDE(NAMES, [ExpertScores(Passages.of_text("x", 5), NAMES, (np.zeros(5, np.float32) - 1,) * K)])
    with pytest.raises(MixtureError, match="unknown column 'score/x'; the ensemble predicts loss/x"):
        mde.measures(mixtures(), "x")
    with pytest.raises(StudyError, match="x is no multiple-choice task"):
        measure(np.zeros(5), Passages.of_text("x", 5))


def test_a_score_has_no_second_derivatives():
    with pytest.raises(MixtureError, match="expected a loss, got score/quiz"):
        ensemble().hessian(mixtures(), "score/quiz")


def test_a_wrong_number_of_log_probabilities_is_refused():
    with pytest.raises(StudyError, match=r"quiz: expected \d+ log-probabilities, got 5"):
        measure(np.zeros(5), task())


# --- chance ------------------------------------------------------------------------


def binomial_tail(right, num, p):
    return sum(comb(num, i) * p**i * (1 - p) ** (num - i) for i in range(right, num + 1))


@pytest.mark.parametrize(("right", "num", "options"), [(0, 20, 4), (9, 20, 4), (20, 20, 4), (60, 100, 2)])
def test_with_equal_options_the_test_is_binomial(right, num, options):
    assert chance_p_value(right / num, np.full(num, options)) == pytest.approx(binomial_tail(right, num, 1 / options))


def test_with_different_options_the_test_agrees_with_guessing():
    num_options = np.array([2] * 20 + [3] * 10 + [5] * 30)
    guesses = (np.random.default_rng(0).random((100_000, 60)) < 1 / num_options).sum(axis=1)
    for right in (15, 20, 24, 28):
        # Three standard errors of 100,000 draws are at most 0.005.
        assert chance_p_value(right / 60, num_options) == pytest.approx((guesses >= right).mean(), abs=0.005)


def test_guessing_passes_at_most_as_often_as_the_level_says():
    num_options = np.full(200, 4)
    guesses = (np.random.default_rng(1).random((2000, 200)) < 0.25).mean(axis=1)
    passed = np.mean([beats_chance(accuracy, num_options) for accuracy in guesses])
    assert passed < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_a_large_task_is_tested_too():
    assert beats_chance(0.27, np.full(10_000, 4))
    assert not beats_chance(0.2505, np.full(10_000, 4))


@pytest.mark.parametrize(
    ("accuracy", "num", "level"), [(0.5, 0, 0.05), (1.5, 10, 0.05), (0.5, 10, 0.0), (0.5, 10, 1.0)]
)
def test_a_test_of_nothing_is_refused(accuracy, num, level):
    with pytest.raises(ConfigError, match="expected questions, an accuracy"):
        beats_chance(accuracy, np.full(num, 4), level)
