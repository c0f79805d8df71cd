"""A study whose objective has an accuracy in it: from a file of questions to a recommended mixture."""

import json

import pytest

from mixopt.study import Study
from tests.e2e.command_line import mixopt, small_study


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def questions(num=30):
    return [
        {"text": "def main():", "options": ["return self", "fellow citizens of the Senate"], "answer": i % 2}
        for i in range(num)
    ]


def with_task(root, rows, **objective):
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiz = {"path": "quiz.jsonl", "kind": "multiple_choice"}
    objective = {"expression": {"loss/web": 1.0, "score/quiz": 0.5}, "unit": "bits_per_byte", **objective}
    return small_study(
        root,
        validation={"seeds": 0},
        search={"batch_size": 3, "budget": 3},
        eval_sets={"quiz": quiz},
        objective=objective,
    )


def test_an_accuracy_is_measured_predicted_and_part_of_the_objective(tmp_path):
    done = mixopt("run", with_task(tmp_path, questions(), allow_chance=True), "--dir", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    study = Study(tmp_path / "run")
    assert study.columns[-2:] == ("loss/quiz", "score/quiz")
    for observation in study.observations:
        assert observation.scores["quiz"] == pytest.approx(round(observation.scores["quiz"] * 60) / 60)
        factor = {s.name: s.bits_per_byte for s in study.header.eval_sets}["web"]
        expected = factor * observation.losses["web"] - 0.5 * observation.scores["quiz"]
        assert study.value(observation) == pytest.approx(expected)
    told = mixopt("predict", tmp_path / "run", "--mixture", "web=0.5,code=0.5", "--json")
    assert told.code == 0, told.err
    assert "score/quiz" in json.dumps(told.data)


def test_a_useless_question_is_named_before_anything_is_trained(tmp_path):
    rows = questions()
    rows[3]["options"][1] = ""
    answer = mixopt("run", with_task(tmp_path, rows), "--dir", tmp_path / "run")
    assert answer.code == 2
    assert "eval_sets.quiz: question 4 has nothing in option 1" in answer.err
    assert not (tmp_path / "run" / "study.jsonl").exists()


def test_a_task_at_which_every_expert_guesses_is_not_searched_on(tmp_path):
    # Both options are the same words, so that nobody can know.
    rows = [{"text": "def main():", "options": ["return self", "return self"], "answer": i % 2} for i in range(40)]
    answer = mixopt("run", with_task(tmp_path, rows), "--dir", tmp_path / "run")
    assert answer.code == 1
    assert "no data expert beats guessing at score/quiz (best of 2 experts 0.500 on 40 questions" in answer.err
    assert not (tmp_path / "run" / "mixture.yaml").exists()
    allowed = mixopt("run", with_task(tmp_path, rows, allow_chance=True), "--dir", tmp_path / "run")
    assert allowed.code == 0, allowed.err
