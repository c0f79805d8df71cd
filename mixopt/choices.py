"""Multiple choice: from log-probabilities of options to the accuracy of any mixture.

An option's score is its log-probability per token. The most likely option is the answer.
Accuracy has no slope, so a smooth score stands beside it: the mean probability of the
right option under a softmax of the scores. Works for one model and for many mixtures.

    M mixtures (or models), D options of all questions, Q questions, T tokens

Source: length-normalized scores are Brown et al. 2020, arXiv:2005.14165, Section 2.4. The
smooth score is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, StudyError
from .mixture import Array
from .passages import MULTIPLE_CHOICE, Integers, Passages

SHARPNESS = 10.0
"""Of the softmax, per nat per token. An option of ten tokens then weighs as much as its likelihood."""

_TIE = 1e-6  # nats per token: rounding of mixed probabilities in single precision
_TOKENS_AT_ONCE = 4096
_MEASURES = ("accuracy", "margin", "score")


@dataclass(frozen=True, eq=False)
class Measures:
    """What M mixtures or models show on a task.

    Attributes:
        accuracy: (M,) share of questions answered right; tied options share a question.
        margin: (M,) mean of the right option's score less that of the best wrong one, nats per token.
        score: (M,) mean probability of the right option under a softmax of the scores.
    """

    accuracy: Array
    margin: Array
    score: Array


@dataclass(frozen=True, eq=False)
class Questions:
    """Consecutive questions of a task, as places among the tokens of a block.

    Attributes:
        starts: (D,) first token of each option.
        lengths: (D,) tokens of each option, at least 1.
        first: (Q,) first option of each question.
        right: (Q,) right option of each question, among all D.
        question: (D,) question of each option.
        total: Questions of the whole task.
    """

    starts: Integers
    lengths: Integers
    first: Integers
    right: Integers
    question: Integers
    total: int

    def option_scores(self, logs_TM: Array) -> Array:
        """Return (D, M) mean log-probabilities per token of options."""
        return np.asarray(np.add.reduceat(logs_TM, self.starts, axis=0) / self.lengths[:, None])

    def measures(self, scores_DM: Array, sharpness: float) -> Measures:
        """Return shares of the whole task's measures, to be added up over its parts."""
        best_QM = np.maximum.reduceat(scores_DM, self.first, axis=0)
        right_QM = scores_DM[self.right]
        tied_QM = np.add.reduceat((scores_DM >= best_QM[self.question] - _TIE).astype(float), self.first, axis=0)
        accuracy_QM = (right_QM >= best_QM - _TIE) / tied_QM
        wrong_DM = scores_DM.copy()
        wrong_DM[self.right] = -np.inf
        margin_QM = right_QM - np.maximum.reduceat(wrong_DM, self.first, axis=0)
        score_QM = self.probabilities(scores_DM, sharpness)[self.right]
        return Measures(*(values.sum(axis=0) / self.total for values in (accuracy_QM, margin_QM, score_QM)))

    def probabilities(self, scores_DM: Array, sharpness: float) -> Array:
        """Return (D, M) probabilities of options under a softmax within each question."""
        best_QM = np.maximum.reduceat(scores_DM, self.first, axis=0)
        odds_DM = np.exp(sharpness * (scores_DM - best_QM[self.question]))
        return np.asarray(odds_DM / np.add.reduceat(odds_DM, self.first, axis=0)[self.question])

    def factors(self, scores_DM: Array, sharpness: float) -> Array:
        """Return (T, M) derivatives of the smooth score with respect to tokens' log-probabilities."""
        probs_DM = self.probabilities(scores_DM, sharpness)
        right_QM = probs_DM[self.right]
        slopes_DM = -probs_DM * right_QM[self.question]
        slopes_DM[self.right] += right_QM
        slopes_DM *= sharpness / self.total / self.lengths[:, None]
        return np.asarray(np.repeat(slopes_DM, self.lengths, axis=0))


def parts(passages: Passages) -> list[tuple[int, Questions]]:
    """Split a task at borders of questions: (token after the last, questions) of each part.

    Raises:
        StudyError: If the evaluation set is no multiple-choice task.
    """
    if passages.kind != MULTIPLE_CHOICE:
        raise StudyError(f"{passages.name} is no multiple-choice task, so it has no accuracy; use its loss")
    total = len(passages.answers)
    options = np.append(passages.first_options, len(passages.offsets) - 1)
    tokens = passages.offsets[options]
    found, begin = [], 0
    while begin < total:
        end = max(begin + 1, int(np.searchsorted(tokens, tokens[begin] + _TOKENS_AT_ONCE, side="right")) - 1)
        here = slice(options[begin], options[end])
        offsets = passages.offsets[options[begin] : options[end] + 1] - tokens[begin]
        num_options = passages.num_options[begin:end]
        questions = Questions(
            offsets[:-1],
            np.diff(offsets),
            options[begin:end] - here.start,
            passages.right_options[begin:end] - here.start,
            np.repeat(np.arange(end - begin), num_options),
            total,
        )
        found.append((int(tokens[end]), questions))
        begin = end
    return found


def measure(logprobs: NDArray[Any], passages: Passages, *, sharpness: float = SHARPNESS) -> Measures:
    """Return the measures of models whose token log-probabilities are known.

    Args:
        logprobs: (M, T) nats, or (T,) of one model.
        passages: The task.
        sharpness: Of the softmax of the smooth score.
    """
    logs_MT = np.atleast_2d(logprobs)
    if logs_MT.shape[1] != passages.num_tokens:
        raise StudyError(
            f"{passages.name}: expected {passages.num_tokens} log-probabilities, got {logs_MT.shape[1]}; score the task again"
        )
    shares, begin = [], 0
    for end, questions in parts(passages):
        scores_DM = questions.option_scores(logs_MT[:, begin:end].T.astype(np.float64))
        shares.append(questions.measures(scores_DM, sharpness))
        begin = end
    return added(shares)


def added(shares: Sequence[Measures]) -> Measures:
    """Add up the shares of a task's parts."""
    return Measures(*(np.sum([getattr(share, name) for share in shares], axis=0) for name in _MEASURES))


def joined(groups: Sequence[Measures]) -> Measures:
    """Put the measures of groups of mixtures behind each other."""
    return Measures(*(np.concatenate([getattr(group, name) for group in groups]) for name in _MEASURES))


def chance(num_options: Integers) -> float:
    """Return the expected accuracy of guessing; (Q,) options per question."""
    return float(np.mean(1 / np.asarray(num_options)))


def chance_p_value(accuracy: float, num_options: Integers) -> float:
    """Return the probability that guessing answers at least as many questions right.

    Exact: the number of right guesses is a sum of binomials, one per number of options.

    Args:
        accuracy: In [0, 1]; may hold shares of tied questions.
        num_options: (Q,) options per question.
    """
    counts = np.asarray(num_options)
    distribution = np.ones(1)
    for options in np.unique(counts):
        distribution = np.convolve(distribution, _binomial(int((counts == options).sum()), 1 / options))
    # A share of 0.6 of 5 questions is 3.0000000000000004 of them.
    least = math.ceil(accuracy * len(counts) - 1e-9)
    return float(min(1.0, distribution[least:].sum()))


def beats_chance(accuracy: float, num_options: Integers, level: float = 0.05) -> bool:
    """Whether an accuracy is better than guessing, by a one-sided exact test.

    Args:
        accuracy: In [0, 1].
        num_options: (Q,) options per question.
        level: Probability that guessing passes, at most.

    Raises:
        ConfigError: If there are no questions or the level is no probability.
    """
    if not len(num_options) or not 0 < level < 1 or not 0 <= accuracy <= 1:
        raise ConfigError(
            f"expected questions, an accuracy in [0, 1] and a level in (0, 1), got {len(num_options)} questions, "
            f"accuracy {accuracy:g} and level {level:g}; correct them"
        )
    return chance_p_value(accuracy, num_options) <= level


def _binomial(num: int, chance_: float) -> Array:
    """Return the (num + 1,) probabilities of 0 to num successes."""
    logs = np.array([math.lgamma(n + 1) for n in range(num + 1)])
    successes = np.arange(num + 1)
    choices = logs[num] - logs - logs[::-1]
    logs_of_terms = choices + successes * math.log(chance_) + (num - successes) * math.log1p(-chance_)
    return np.asarray(np.exp(logs_of_terms))
