"""Score files: what is written is what is read, and what does not fit is refused by name."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from mixopt import MixtureError, StudyError
from mixopt.passages import Passages, read_passages, save_passages
from mixopt.scores import ExpertScores, ScoreCard, ScoreFile, save_scores
from mixopt.scores_folder import load_scores, sound_scores
from mixopt.storage import read_json, write_json

NAMES = ("web", "code", "books")
T = 1200


def passages(name="jargon", num_tokens=T, text="f1"):
    return Passages(name, np.array([0, 500, num_tokens]), text, num_bytes=4 * num_tokens)


def card(domain="web", eval_set="jargon", **changes):
    plain = ScoreCard(domain, f"expert-{domain}", "top", 7, f"hash-{domain}", "tok1", eval_set, "f1")
    return replace(plain, **changes)


def logprobs(seed=0, num_tokens=T, dtype=np.float32):
    return -np.random.default_rng(seed).exponential(2.0, num_tokens).astype(dtype)


def folder_of(tmp_path, names=NAMES, **changes):
    """Three experts on one set."""
    save_passages(tmp_path, passages())
    for i, name in enumerate(names):
        save_scores(tmp_path, f"k-{name}", logprobs(i), card(name, **changes))
    return tmp_path


def rewrite_card(folder, key, **changes):
    write_json(folder / f"{key}.json", {**read_json(folder / f"{key}.json"), **changes})


# --- what is written is what is read --------------------------------------------


def test_saved_scores_are_loaded_in_the_order_of_the_domains(tmp_path):
    (scores,) = load_scores(folder_of(tmp_path), ["books", "web"])
    assert scores.domains == ("books", "web")
    assert [np.array(a[:]).tolist() for a in scores.logprobs] == [logprobs(2).tolist(), logprobs(0).tolist()]


def test_the_structure_of_a_set_survives(tmp_path):
    task = Passages(
        "quiz", np.array([0, 2, 5, 6, 9, 12]), "f2", "multiple_choice", 40, np.array([2, 3]), np.array([1, 0])
    )
    save_passages(tmp_path, task)
    found = read_passages(tmp_path / "f2.set.npz")
    assert (found.name, found.kind, found.num_bytes, found.fingerprint) == ("quiz", "multiple_choice", 40, "f2")
    assert found.offsets.tolist() == task.offsets.tolist()
    assert (found.num_options.tolist(), found.answers.tolist()) == ([2, 3], [1, 0])


def test_a_part_of_a_file_is_that_part_of_the_array(tmp_path):
    file = ScoreFile.open(folder_of(tmp_path) / "k-web.npy")
    assert len(file) == T
    assert file[300:700].tolist() == logprobs(0)[300:700].tolist()
    assert file[1100:5000].tolist() == logprobs(0)[1100:].tolist()


def test_half_precision_is_read_too(tmp_path):
    folder = folder_of(tmp_path)
    save_scores(folder, "k-web", logprobs(0, dtype=np.float16), card())
    (scores,) = load_scores(folder, NAMES)
    assert scores.logprobs[0][:].dtype == np.float16


def test_a_further_expert_or_set_rewrites_no_file(tmp_path):
    folder = folder_of(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    save_passages(folder, passages())
    save_passages(folder, passages("other", text="f2"))
    save_scores(folder, "k-law", logprobs(5), card("law"))
    save_scores(folder, "k-web-2", logprobs(6), card("web", "other", eval_fingerprint="f2"))
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert [s.passages.name for s in load_scores(folder, ["web"])] == ["jargon", "other"]


def test_experts_of_other_domains_are_left_aside(tmp_path):
    (scores,) = load_scores(folder_of(tmp_path), ["code"])
    assert scores.domains == ("code",)


def test_sets_are_opened_in_the_asked_order_or_by_name(tmp_path):
    folder = folder_of(tmp_path)
    save_passages(folder, passages("alpha", text="f2"))
    for i, name in enumerate(NAMES):
        save_scores(folder, f"a-{name}", logprobs(i), card(name, "alpha", eval_fingerprint="f2"))
    assert [s.passages.name for s in load_scores(folder, NAMES)] == ["alpha", "jargon"]
    assert [s.passages.name for s in load_scores(folder, NAMES, eval_sets=["jargon", "alpha"])] == ["jargon", "alpha"]


def test_scores_are_there_only_with_their_card(tmp_path):
    folder = folder_of(tmp_path)
    assert sound_scores(folder, "k-web")
    (folder / "k-web.json").unlink()
    assert not sound_scores(folder, "k-web")


# --- which expert ----------------------------------------------------------------


def two_rungs(tmp_path):
    folder = folder_of(tmp_path)
    for i, name in enumerate(NAMES):
        save_scores(folder, f"low-{name}", logprobs(9 + i), card(name, fidelity="low", expert=f"low-{name}"))
    return folder


def test_experts_of_one_rung_are_chosen_by_name(tmp_path):
    (scores,) = load_scores(two_rungs(tmp_path), NAMES, fidelity="low")
    assert scores.logprobs[0][:].tolist() == logprobs(9).tolist()


def test_experts_of_two_rungs_are_not_mixed(tmp_path):
    with pytest.raises(StudyError, match=r"mixes experts of \w+: .*rung top.* has expert .*rung low.* choose with"):
        load_scores(two_rungs(tmp_path), NAMES)


def test_experts_of_two_seeds_are_not_mixed_unless_one_is_chosen(tmp_path):
    folder = folder_of(tmp_path)
    save_scores(folder, "again", logprobs(4), card("code", seed=8, expert="other"))
    with pytest.raises(StudyError, match=r"mixes experts of code: .*seed \d.*seed \d"):
        load_scores(folder, NAMES)
    (scores,) = load_scores(folder, NAMES, seed=7)
    assert scores.logprobs[1][:].tolist() == logprobs(1).tolist()


def test_domains_of_two_rungs_are_not_mixed(tmp_path):
    folder = folder_of(tmp_path)
    save_scores(folder, "k-code", logprobs(1), card("code", fidelity="low"))
    with pytest.raises(StudyError, match=r"mixes rungs: .* has fidelity"):
        load_scores(folder, NAMES)


def test_listed_keys_are_the_only_files_used(tmp_path):
    (scores,) = load_scores(two_rungs(tmp_path), NAMES, keys=[f"k-{name}" for name in NAMES])
    assert scores.logprobs[2][:].tolist() == logprobs(2).tolist()


# --- what does not fit is refused -------------------------------------------------


def test_another_tokenizer_is_refused_with_both_named(tmp_path):
    folder = folder_of(tmp_path)
    save_scores(folder, "k-code", logprobs(1), card("code", tokenizer="tok2"))
    with pytest.raises(StudyError, match=r"tokenizer tok\d, .* has tok\d"):
        load_scores(folder, NAMES)


def test_another_evaluation_text_is_refused_with_both_named(tmp_path):
    folder = folder_of(tmp_path)
    save_scores(folder, "k-code", logprobs(1), card("code", eval_fingerprint="f9"))
    with pytest.raises(StudyError, match=r"mixes texts of jargon: .* f\d, .* has f\d"):
        load_scores(folder, NAMES)


def test_missing_experts_are_named(tmp_path):
    folder = folder_of(tmp_path, ("web",))
    save_scores(folder, "low-code", logprobs(1), card("code", fidelity="low"))
    with pytest.raises(StudyError, match=r"no expert of code in .*rung top"):
        load_scores(folder, ["web", "code"], fidelity="top")


def test_experts_that_were_not_scored_on_a_set_are_named(tmp_path):
    folder = folder_of(tmp_path)
    save_passages(folder, passages("late", text="f2"))
    save_scores(folder, "late-web", logprobs(3), card("web", "late", eval_fingerprint="f2"))
    with pytest.raises(StudyError, match="late: no scores of the experts of code, books"):
        load_scores(folder, NAMES)


def test_mixtures_over_other_domains_than_the_experts_are_refused(tmp_path):
    with pytest.raises(MixtureError, match=r"mixtures are over web, law, .* experts of books, code, web: none of law"):
        load_scores(folder_of(tmp_path), ["web", "law"])


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(StudyError, match="no folder of expert scores at"):
        load_scores(tmp_path / "nowhere", NAMES)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "3 NaN"), (-np.inf, "3 -inf"), (0.5, "3 positive")],
    ids=["nan", "minus inf", "positive"],
)
def test_impossible_log_probabilities_are_counted_with_expert_and_set(tmp_path, value, words):
    folder, array = folder_of(tmp_path), logprobs(1)
    array[[3, 4, 900]] = value
    save_scores(folder, "k-code", array, card("code"))
    with pytest.raises(
        StudyError, match=f"jargon: of 1200 log-probabilities of expert expert-code .* there are {words}"
    ):
        load_scores(folder, NAMES)


def test_rounding_above_zero_is_accepted(tmp_path):
    folder, array = folder_of(tmp_path), logprobs(1)
    array[5] = 1e-7
    save_scores(folder, "k-code", array, card("code"))
    load_scores(folder, NAMES)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    path = folder_of(tmp_path) / "k-code.npy"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StudyError, match=r"k-code.npy are damaged: expected checksum"):
        load_scores(tmp_path, NAMES)


def test_lengths_that_do_not_agree_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    save_scores(folder, "k-code", logprobs(1, T - 1), card("code"))
    with pytest.raises(StudyError, match="jargon: expected 1200 tokens, got 1199 of the expert of code"):
        load_scores(folder, NAMES)


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def scramble(path):
    path.write_bytes(b"no array at all")


@pytest.mark.parametrize("damage", [remove, empty, cut, scramble])
@pytest.mark.parametrize("file", ["k-code.npy", "f1.set.npz"])
def test_missing_or_damaged_files_are_an_error_that_names_the_file(tmp_path, damage, file):
    damage(folder_of(tmp_path) / file)
    with pytest.raises(StudyError, match=rf"{file}.*(missing|damaged).*score the expert"):
        load_scores(tmp_path, NAMES)


@pytest.mark.parametrize("damage", [empty, cut, scramble])
def test_a_damaged_card_is_an_error_that_names_the_file(tmp_path, damage):
    damage(folder_of(tmp_path) / "k-code.json")
    with pytest.raises(StudyError, match=r"k-code.json.*damaged"):
        load_scores(tmp_path, NAMES)


def test_a_small_set_is_a_warning(tmp_path, caplog):
    save_passages(tmp_path, passages(num_tokens=600))
    save_scores(tmp_path, "k-web", logprobs(0, 600), card())
    with caplog.at_level(logging.WARNING):
        load_scores(tmp_path, ["web"])
    assert "eval set small name=jargon tokens=600" in caplog.text


# --- the structure -----------------------------------------------------------------


def test_the_loss_of_a_task_is_over_the_right_options():
    task = Passages(
        "quiz", np.array([0, 2, 5, 6, 9, 12]), "f2", "multiple_choice", 9, np.array([2, 3]), np.array([1, 0])
    )
    assert np.flatnonzero(task.counted).tolist() == [2, 3, 4, 5]
    assert task.columns == ("loss/quiz", "score/quiz")
    assert passages().counted is None
    assert passages().columns == ("loss/jargon",)


@pytest.mark.parametrize(
    ("offsets", "num_options", "answers", "words"),
    [
        ([0, 2, 2, 5, 6], [2, 2], [0, 1], "option 1 of question 1 has no tokens"),
        ([0, 2, 4, 5, 6], [2, 2], [0, 2], "question 2 has 2 options and answer 2"),
        ([0, 2, 4, 5, 6], [3, 1], [0, 0], "question 2 has 1 options"),
        ([0, 2, 4, 5, 6], [2, 3], [0, 0], "4 options for counts that sum to 5"),
        ([1, 2, 4, 5, 6], [2, 2], [0, 0], "offsets that rise from 0"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(offsets, num_options, answers, words):
    with pytest.raises(StudyError, match=words):
        Passages("quiz", np.array(offsets), "f", "multiple_choice", 9, np.array(num_options), np.array(answers))


def test_experts_must_be_scored_on_the_same_tokens():
    with pytest.raises(StudyError, match="jargon: expected 5 tokens, got 4 of the expert of b"):
        ExpertScores(Passages.of_text("jargon", 5), ("a", "b"), (logprobs(num_tokens=5), logprobs(num_tokens=4)))
