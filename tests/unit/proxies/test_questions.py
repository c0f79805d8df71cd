"""Multiple choice: questions out of files, options as scored tokens, and the answer a model gives."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import ConfigError
from mixopt.proxies.evaluators import MeasuredSet
from mixopt.proxies.model import ProxyStack
from mixopt.proxies.questions import Question, TaskShard, TaskSource, evenly, joined, open_shard, passages
from mixopt.proxies.scoring import ScoringRows, score
from mixopt.proxies.text import TextSource
from mixopt.proxies.tokenizer import TextTokenizer, train_tokenizer

from .builders import small_config

TEXT = "the cat sat on the mat and looked at the dog that lay under a tree"
QUESTIONS = [
    Question("Where did the cat sit?", ("on the mat", "under a tree", "it looked at the dog"), 0),
    Question("", ("dog the", "the dog"), 1),
    Question("Who lay there? ", ("the dog", "the cat"), 0),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer({"web": [TEXT] * 3}, 280, path)
    return TextTokenizer(path)


def task(root, tokenizer, questions=QUESTIONS):
    return TaskShard.build_task(root, "eval-quiz", questions, tokenizer=tokenizer, key={"n": len(questions)})


def source(root, rows, **columns):
    path = root / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskSource(TextSource("eval_sets.quiz", str(path)), **columns)


def row(**changes):
    return {"text": "Who?", "options": ["the cat", "the dog"], "answer": 1, **changes}


def a_model(vocab_size, seed=0):
    config = replace(small_config(sequence_length=64), vocab_size=vocab_size)
    model = ProxyStack(config, 1).initialize([torch.Generator().manual_seed(seed)])
    with torch.no_grad():
        model.blocks[0].attention.out.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    return model


# --- reading ------------------------------------------------------------------


def test_the_answer_is_a_number_or_the_options_text(tmp_path):
    found = source(tmp_path, [row(), row(answer="the cat"), row(text=None)]).questions()
    assert [q.answer for q in found] == [1, 0, 1]
    assert found[2].context == ""


def test_other_column_names_can_be_given(tmp_path):
    rows = [{"text": "", "choices": ["a", "b", "c"], "label": 2}]
    assert source(tmp_path, rows, options="choices", answer="label").questions() == [Question("", ("a", "b", "c"), 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": ["the cat", "  "]}, "question 2 has nothing in option 1"),
        ({"options": ["the cat"]}, "question 2 has options ['the cat'], expected a list of two or more"),
        ({"options": "the cat"}, "expected a list of two or more texts"),
        ({"answer": 2}, "question 2 has answer 2, expected a number from 0 to 1"),
        ({"answer": -1}, "question 2 has answer -1"),
        ({"answer": "nobody"}, "question 2 has answer 'nobody'"),
        ({"answer": None}, "question 2 has answer None"),
    ],
)
def test_a_question_without_use_is_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        source(tmp_path, [row(), row(**changes)]).questions()


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no column 'options' .*; it has answer, text"):
        source(tmp_path, [{"text": "x", "answer": 0}]).questions()


def test_questions_are_taken_evenly():
    numbered = [Question("", (str(i), "x"), 0) for i in range(10)]
    assert [q.options[0] for q in evenly(numbered, 5)] == ["1", "3", "5", "7", "9"]
    assert list(evenly(numbered, 99)) == numbered


# --- tokens -------------------------------------------------------------------


def test_only_options_are_scored_and_each_token_once(tmp_path, tokenizer):
    shard = task(tmp_path, tokenizer)
    texts = [joined(q.context, option) for q in QUESTIONS for option in q.options]
    expected = [token for encoding in tokenizer.encode(texts) for token in encoding.ids]
    for length in (4, 16, 64):
        rows = ScoringRows.cut(shard, length)
        assert rows.targets[rows.mask].tolist() == expected
    assert passages("quiz", shard).num_tokens == len(expected)


def test_an_option_follows_its_context_after_one_space():
    assert joined("Who?", "me") == " me"
    assert joined("Who? ", "me") == "me"
    assert joined("", "me") == "me"


def test_loss_and_bytes_are_those_of_the_right_options(tmp_path, tokenizer):
    shard = task(tmp_path, tokenizer)
    right = [joined(q.context, q.options[q.answer]) for q in QUESTIONS]
    assert shard.meta["num_tokens"] == sum(len(e.ids) for e in tokenizer.encode(right))
    assert shard.meta["num_bytes"] == sum(len(text.encode()) for text in right)
    on = MeasuredSet(ScoringRows.cut(shard, 32), passages("quiz", shard))
    logprobs = score(a_model(tokenizer.vocab_size), on.rows)[0]
    counted = on.passages.counted
    assert counted.sum() == shard.meta["num_tokens"]
    assert on.columns(logprobs)["loss/quiz"] == pytest.approx(-logprobs[counted].mean(), rel=1e-6)


def test_a_task_that_is_there_is_not_tokenized_again_and_opens_as_a_task(tmp_path, tokenizer):
    first = task(tmp_path, tokenizer)
    stamp = (first.path / "tokens.npy").stat().st_mtime_ns
    again = task(tmp_path, tokenizer)
    assert (again.path / "tokens.npy").stat().st_mtime_ns == stamp
    opened = open_shard(first.path)
    assert isinstance(opened, TaskShard)
    assert opened.answers.tolist() == [0, 1, 0]
    assert opened.num_options.tolist() == [3, 2, 2]


# --- answers ------------------------------------------------------------------


def by_hand(model, tokenizer, question):
    """Mean log-probability per token of each option, from one whole sequence per option."""
    found = []
    for option in question.options:
        context, scored = (e.ids for e in tokenizer.encode([question.context, joined(question.context, option)]))
        tokens = torch.tensor([tokenizer.separator, *context, *scored])
        with torch.no_grad():
            losses = model.token_losses(tokens[:-1].view(1, 1, -1), tokens[1:].view(1, 1, -1))[0, 0]
        found.append(-float(losses[len(context) :].mean()))
    return found


def test_the_likeliest_option_per_token_is_the_answer(tmp_path, tokenizer):
    shard = task(tmp_path, tokenizer)
    on = MeasuredSet(ScoringRows.cut(shard, 64), passages("quiz", shard))
    for seed in range(5):
        model = a_model(tokenizer.vocab_size, seed)
        chosen = [int(np.argmax(by_hand(model, tokenizer, q))) for q in QUESTIONS]
        right = np.mean([c == q.answer for c, q in zip(chosen, QUESTIONS, strict=True)])
        assert on.columns(score(model, on.rows)[0])["score/quiz"] == pytest.approx(right)


def test_of_a_long_context_the_end_is_kept_and_at_least_half_a_row(tmp_path, tokenizer):
    short = Question("the dog lay under a tree", ("the cat", "the dog"), 0)
    long = Question("and looked " * 40 + short.context, short.options, 0)
    model = a_model(tokenizer.vocab_size)
    length = len(tokenizer.encode([short.context])[0].ids) + len(tokenizer.encode([" the cat"])[0].ids)
    rows = ScoringRows.cut(task(tmp_path, tokenizer, [long]), length)
    kept = [int(mask.argmax()) for mask in rows.mask]
    assert all(first >= length // 2 for first in kept)
    ends = {tuple(row[1 : first + 1]) for row, first in zip(rows.inputs.tolist(), kept, strict=True)}
    context = tokenizer.encode([long.context])[0].ids
    assert all(list(end) == context[len(context) - len(end) :] for end in ends)
    assert np.all(np.isfinite(score(model, rows)))
