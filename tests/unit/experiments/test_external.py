import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mixopt.config import ExternalConfig, dump_config, load_config, load_study, validate_external
from mixopt.errors import ConfigError, StudyChangedError, StudyError
from mixopt.experiments.external import ExternalStudy, as_columns
from mixopt.mixture import Mixture
from mixopt.observation import Status
from mixopt.runs import RunsTable
from mixopt.storage import RunDirectory
from mixopt.study import Study
from tests.unit.experiments.finished_study import started_study

torch.set_num_threads(1)

ROOT = Path(__file__).parents[3]
NAMES = ("web", "code", "books")


def a_study(directory=None, *, optimizer="random", search=None, **fields):
    defaults = {"domains": NAMES, "ladder": {"small": 1, "large": 10}, "objective": "mean(loss/*)"}
    return ExternalStudy.create(
        directory, **{**defaults, "search": {"optimizer": optimizer, **(search or {})}, **fields}
    )


def losses(weights):
    """A smooth truth whose best mixture is 60% web, 30% code, 10% books."""
    return {
        name: 2 + sum((weights.get(d, 0) - w) ** 2 for d, w in zip(NAMES, (0.6, 0.3, 0.1), strict=True)) + i
        for i, name in enumerate(("chat", "python"))
    }


def a_table(rows, *, domains=NAMES, runs=None, fidelity="large", **fields):
    """A runs table of mixtures over `domains`, with the losses of the truth unless columns are given."""
    rows = np.array(rows, dtype=float)
    truth = [losses(dict(zip(domains, row, strict=True))) for row in rows]
    columns = {f"loss/{name}": np.array([t[name] for t in truth]) for name in ("chat", "python")}
    return RunsTable(
        tuple(domains),
        tuple(runs or [f"own-{i}" for i in range(len(rows))]),
        (fidelity,) * len(rows),
        rows,
        **{"columns": columns, "costs": np.ones(len(rows)), **fields},
    )


def suggested_table(suggestions, **columns):
    return a_table(
        [s.mixture.weights for s in suggestions], runs=[s.run for s in suggestions], fidelity=suggestions[0].fidelity,
        **({"columns": {f"loss/{k}": np.array(v, dtype=float) for k, v in columns.items()}} if columns else {}),
    )  # fmt: skip


def tell_all(study, suggestions):
    for suggestion in suggestions:
        study.tell(suggestion.run, losses=losses(suggestion.weights))


def refused(study, table, *parts, error=ConfigError):
    """Telling the table is refused with one message, and the ledger stays as it is."""
    ledger = RunDirectory(study.directory).ledger
    before = ledger.read_bytes() if ledger.exists() else b""
    with pytest.raises(error) as caught:
        study.tell_runs(table)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value
    assert (ledger.read_bytes() if ledger.exists() else b"") == before


# --- the study file -----------------------------------------------------------


def fields(**changes):
    return {"name": "s", "trainer": "external", "domains": list(NAMES), "objective": "loss/chat", **changes}


def problem(**changes):
    with pytest.raises(ConfigError) as caught:
        validate_external(fields(**changes), "study.yaml")
    return str(caught.value)


def test_the_commented_example_is_valid_and_builds_a_study():
    config = load_study(ROOT / "experiments" / "studies" / "external.yaml")
    assert isinstance(config, ExternalConfig)
    assert ExternalStudy(config).domains == tuple(config.domains)


def test_a_list_of_domains_and_a_mapping_without_tokens_mean_the_same():
    assert validate_external(fields(), "a") == validate_external(fields(domains=dict.fromkeys(NAMES)), "b")


def test_a_ladder_may_be_a_mapping_of_costs():
    long = [{"name": "s", "cost": 1}, {"name": "l", "cost": 60}]
    assert validate_external(fields(ladder={"s": 1, "l": 60}), "a") == validate_external(fields(ladder=long), "b")


def test_without_a_cost_a_rung_costs_params_times_tokens():
    config = validate_external(fields(ladder=[{"name": "s", "params": 3, "tokens": 7}]), "a")
    assert config.ladder[0].price == 21


def test_a_written_study_file_reads_back_equal(tmp_path):
    config = validate_external(fields(columns=["loss/chat"], domains={"web": {"tokens": 5}, "code": None}), "a")
    path = tmp_path / "study.yaml"
    path.write_text(dump_config(config))
    assert load_study(path) == config


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"budget": 3}, ["budget: unknown field", "known fields are"]),
        ({"search": {"batchsize": 3}}, ["search.batchsize: unknown field; did you mean 'batch_size'"]),
        ({"domains": ["web", "web"]}, ["domains: 'web' is listed twice"]),
        ({"domains": {"web": {"path": "web.txt"}}}, ["domains.web.path: unknown field", "tokens"]),
        ({"trainer": "other"}, ["trainer", "'external'"]),
        ({"ladder": [{"name": "small"}]}, ["ladder: rung 'small' has no cost", "params and tokens"]),
        ({"ladder": [{"name": "a", "cost": 1}, {"name": "a", "cost": 2}]}, ["rung names must be unique"]),
        ({"ladder": {"a": 0}}, ["ladder.0.cost", "greater than 0"]),
        ({"objective": {"expression": "loss/chat"}}, ["objective", "write the expression itself"]),
        ({"columns": ["chat"]}, ["columns: expected loss/NAME or score/NAME", "'chat'"]),
        ({"constraints": {"max_epochs": 2}}, ["domains.web.tokens", "constraints.max_epochs", "add them"]),
        ({"constraints": {"kl": {"weight": 0.1}}}, ["domains.web.tokens", "constraints.kl.to: natural"]),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_remedy(changes, parts):
    message = problem(**changes)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"search": {"optimizer": "magic"}}, "search.optimizer: unknown optimizer 'magic'; known are mfbo"),
        ({"search": {"optimizer": "random", "price": 0.1}}, "search.price: random cannot use it"),
        ({"objective": "median(loss/*)"}, "objective.expression"),
        ({"objective": "loss/quiz", "columns": ["loss/chat"]}, "unknown column 'loss/quiz'; available are loss/chat"),
        ({"constraints": {"bounds": {"math": [0, 1]}}}, "constraints.bounds: unknown domain 'math'"),
        ({"constraints": {"bounds": {"web": [0.7, 1], "code": [0.7, 1]}}}, "lower bounds sum to 1.4"),
    ],
)
def test_a_study_that_cannot_be_searched_is_refused_when_it_is_made(changes, part):
    with pytest.raises(ConfigError, match=re.escape(part)):
        ExternalStudy.create(**fields(**changes))


def test_each_kind_of_study_file_is_refused_by_the_verbs_of_the_other(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(fields()))
    with pytest.raises(ConfigError, match="use mixopt suggest and mixopt tell"):
        load_config(path)
    path.write_text(
        yaml.safe_dump({"name": "s", "domains": {"a": {"path": "a.txt"}}, "objective": {"expression": "loss/a"}})
    )
    with pytest.raises(ConfigError, match="use mixopt run, or write a study file with `trainer: external`"):
        ExternalStudy.open(path)


# --- ask ----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["mfbo", "random", "sobol"])
def test_suggestions_before_anything_is_told_are_feasible_and_all_different(optimizer):
    study = a_study(optimizer=optimizer, constraints={"bounds": {"code": [0.2, 0.5]}})
    suggestions = study.ask(2) + study.ask(2)
    assert len({s.run for s in suggestions}) == 4
    assert all(0.2 - 1e-6 <= s.weights["code"] <= 0.5 + 1e-6 for s in suggestions)
    assert len({(s.mixture, s.fidelity) for s in suggestions}) == 4
    assert all(s.reason for s in suggestions)
    assert study.pending == suggestions


def test_the_cost_of_a_suggestion_is_in_the_unit_of_the_ladder():
    assert a_study().ask(1)[0].cost == 10


def test_the_batch_size_of_the_study_file_is_asked_for_by_default():
    assert len(a_study(search={"batch_size": 3}).ask()) == 3


def test_the_budget_limits_what_is_suggested_and_own_runs_are_free():
    study = a_study(search={"budget": 3})
    study.tell_runs(a_table(np.eye(3)))
    assert study.budget_left == 3
    assert len(study.ask(2)) == 2
    assert len(study.ask(2)) == 1
    assert study.ask(2) == []
    assert study.budget_left == 0


def test_without_a_budget_there_is_no_limit():
    study = a_study()
    assert len(study.ask(20)) == 20
    assert study.budget_left == math.inf


def test_less_than_one_run_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        a_study().ask(0)


@pytest.mark.parametrize("optimizer", ["mfbo", "random"])
def test_a_reopened_study_suggests_what_the_uninterrupted_one_does(tmp_path, optimizer):
    kept = a_study(optimizer=optimizer)
    for _ in range(2):
        tell_all(kept, kept.ask(2))
        opened = a_study(tmp_path / "run", optimizer=optimizer)
        tell_all(opened, opened.ask(2))
    assert a_study(tmp_path / "run", optimizer=optimizer).ask(2) == kept.ask(2)


def test_a_failed_mixture_is_not_suggested_again():
    study = a_study(optimizer="mfbo", domains=["only"], ladder={"large": 1})
    first = study.ask(1)[0]
    study.fail(first.run)
    assert (first.mixture, first.fidelity) not in {(s.mixture, s.fidelity) for s in study.ask(1)}


def test_written_suggestions_hold_the_columns_of_a_runs_table():
    study = a_study()
    suggestions = study.ask(2)
    columns = as_columns(suggestions, study.domains)
    assert list(columns) == ["run", "fidelity", "weight/web", "weight/code", "weight/books", "cost", "reason"]
    weights = np.stack([columns[f"weight/{name}"] for name in NAMES], axis=1)
    assert weights.tolist() == [s.mixture.weights.tolist() for s in suggestions]


# --- candidates ---------------------------------------------------------------


def candidates(rows, **fields):
    return a_table(rows, runs=[f"row-{i}" for i in range(len(rows))], **{"columns": {}, **fields})


@pytest.mark.parametrize("optimizer", ["mfbo", "random"])
def test_with_candidates_only_their_rows_are_suggested_each_once(optimizer):
    study = a_study(optimizer=optimizer)
    table = candidates([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1, 0, 0]])
    suggestions = study.ask(2, candidates=table) + study.ask(5, candidates=table)
    assert sorted(s.candidate for s in suggestions) == ["row-0", "row-1", "row-2"]
    rows = dict(zip(table.runs, table.weights.tolist(), strict=True))
    assert all(s.mixture.weights.tolist() == rows[s.candidate] for s in suggestions)
    assert "candidate" in as_columns(suggestions, study.domains)


def test_a_candidate_that_is_told_as_an_own_run_is_not_suggested():
    study = a_study()
    study.tell_runs(a_table([[1, 0, 0]]))
    table = candidates([[1, 0, 0], [0, 1, 0]])
    assert [s.candidate for s in study.ask(2, candidates=table)] == ["row-1"]


def test_candidates_that_violate_the_constraints_are_left_out():
    study = a_study(constraints={"bounds": {"web": [0.2, 1]}})
    table = candidates([[0.1, 0.9, 0], [0.3, 0.7, 0]])
    assert [s.candidate for s in study.ask(2, candidates=table)] == ["row-1"]
    with pytest.raises(ConfigError, match="none satisfies the constraints"):
        study.ask(1, candidates=candidates([[0, 1, 0]]))


def test_candidates_may_name_the_domains_in_another_order():
    suggestion = a_study().ask(1, candidates=candidates([[0.7, 0.3]], domains=("books", "web")))[0]
    assert suggestion.weights == {"web": 0.3, "code": 0, "books": 0.7}


@pytest.mark.parametrize(
    ("table", "part"),
    [
        (candidates([[1, 0, 0]], fidelity="huge"), "unknown rung 'huge'; the ladder has small, large"),
        (candidates([[0.5, 0.5]], domains=("web", "math")), "unknown domain 'math'"),
    ],
)
def test_candidates_the_study_cannot_have_are_named(table, part):
    with pytest.raises(ConfigError, match=re.escape(part)):
        a_study().ask(1, candidates=table)


# --- tell ---------------------------------------------------------------------


def test_suggestions_that_are_told_are_no_longer_pending():
    study = a_study()
    first, second = study.ask(2)
    study.tell(first.run, losses=losses(first.weights))
    assert study.pending == [second]
    assert study.best[0] == first.run


def test_own_runs_are_recorded_under_their_ids(tmp_path):
    study = a_study(tmp_path / "run")
    study.tell_runs(a_table(np.eye(3)))
    ledger = Study(tmp_path / "run")
    assert [(t.id, t.proposed_by, t.status) for t in ledger.trials] == [(f"own-{i}", "user", "done") for i in range(3)]
    assert list(ledger.to_frame()["run"]) == ["own-0", "own-1", "own-2"]


def test_telling_the_same_table_twice_is_one_observation(tmp_path):
    study = a_study(tmp_path / "run")
    study.tell_runs(a_table(np.eye(3)))
    before = RunDirectory(tmp_path / "run").ledger.read_bytes()
    again = study.tell_runs(a_table(np.eye(3)))
    assert (again.results, again.known) == ((), ("own-0", "own-1", "own-2"))
    assert RunDirectory(tmp_path / "run").ledger.read_bytes() == before


def test_a_conflicting_row_is_named_and_nothing_of_the_table_is_recorded(tmp_path):
    study = a_study(tmp_path / "run")
    study.tell_runs(a_table([[1, 0, 0]], runs=["a"]))
    table = a_table([[0, 1, 0], [1, 0, 0]], runs=["b", "a"])
    table.columns["loss/chat"].flags.writeable = True
    table.columns["loss/chat"][1] = 9.0
    refused(study, table, "nothing was recorded", "run 'a'", "loss/chat was told as 2.26 before, now as 9")


def test_numbers_that_were_written_with_ten_digits_are_the_same(tmp_path):
    study = a_study(tmp_path / "run")
    table = a_table([[1, 0, 0]], columns={"loss/chat": np.array([math.pi])})
    study.tell_runs(table)
    rounded = a_table([[1, 0, 0]], columns={"loss/chat": np.array([float(f"{math.pi:.10g}")])})
    assert study.tell_runs(rounded).known == ("own-0",)


def test_a_changed_mixture_is_refused_beyond_a_millionth(tmp_path):
    study = a_study(tmp_path / "run")
    suggestion = study.ask(1)[0]
    shift = np.array([1.0, -1.0, 0.0])
    far = a_table([suggestion.mixture.weights + 1e-4 * shift], runs=[suggestion.run])
    refused(study, far, f"run '{suggestion.run}'", "differs by 0.0001", "more than 1e-06")
    near = a_table([suggestion.mixture.weights + 1e-7 * shift], runs=[suggestion.run])
    assert len(study.tell_runs(near).results) == 1
    assert Study(tmp_path / "run").trial(suggestion.run).mixture == suggestion.mixture


def test_a_suggestion_told_at_another_rung_is_refused(tmp_path):
    study = a_study(tmp_path / "run")
    suggestion = study.ask(1)[0]
    table = a_table([suggestion.mixture.weights], runs=[suggestion.run], fidelity="small")
    refused(study, table, "its fidelity is large, the table says small")


def test_an_id_of_ours_that_was_never_suggested_is_refused(tmp_path):
    refused(a_study(tmp_path / "run"), a_table([[1, 0, 0]], runs=["search-007"]), "suggested no such run")


def test_an_unknown_rung_lists_those_of_the_ladder(tmp_path):
    table = a_table([[1, 0, 0]], fidelity="huge")
    refused(a_study(tmp_path / "run"), table, "unknown rung 'huge'; the ladder has small, large")


def test_an_unknown_domain_is_an_error_only_if_it_has_weight(tmp_path):
    study = a_study(tmp_path / "run")
    refused(study, a_table([[0.5, 0.5]], domains=("web", "math")), "unknown domain 'math'")
    assert len(study.tell_runs(a_table([[1, 0]], domains=("web", "math"))).results) == 1


def test_domains_may_come_in_another_order_and_missing_ones_are_zero(tmp_path):
    study = a_study(tmp_path / "run")
    study.tell_runs(a_table([[0.75, 0.25]], domains=("books", "web")))
    assert Study(tmp_path / "run").trial("own-0").mixture.as_dict() == {"web": 0.25, "code": 0.0, "books": 0.75}


def test_many_wrong_rows_are_counted_and_some_are_shown(tmp_path):
    table = a_table(np.eye(3).repeat(4, 0), fidelity="huge")
    refused(a_study(tmp_path / "run"), table, "run 'own-0'", "run 'own-4'", "and 7 more")


def test_a_row_without_any_value_is_a_failed_run():
    study = a_study()
    suggestions = study.ask(2)
    telling = study.tell_runs(suggested_table(suggestions, chat=[math.nan, 2.0]))
    assert telling.failed == (suggestions[0].run,)
    assert [r.status for r in telling.results] == [Status.ABANDONED, Status.DONE]
    assert study.pending == []


def test_a_failed_run_cannot_have_worked_after_all_nor_the_reverse(tmp_path):
    study = a_study(tmp_path / "run")
    nothing = {"columns": {"loss/chat": np.array([math.nan])}}
    study.tell_runs(a_table([[1, 0, 0]], runs=["a"], **nothing))
    study.tell_runs(a_table([[1, 0, 0]], runs=["b"], columns={"loss/chat": np.ones(1)}))
    refused(study, a_table([[1, 0, 0]], runs=["a"], columns={"loss/chat": np.ones(1)}), "told as failed before")
    refused(study, a_table([[1, 0, 0]], runs=["b"], **nothing), "with values before, now it has none")
    assert study.tell_runs(a_table([[1, 0, 0]], runs=["a"], **nothing)).known == ("a",)


def test_a_partly_empty_row_keeps_its_values_and_may_be_completed():
    study = a_study()
    suggestion = study.ask(1)[0]
    study.tell_runs(suggested_table([suggestion], chat=[2.5], python=[math.nan]))
    assert study.best is None
    study.tell(suggestion.run, losses={"python": 1.5})
    assert study.best[2] == 2.0


def test_the_first_runs_told_decide_the_columns(tmp_path):
    study = a_study(tmp_path / "run")
    study.tell_runs(a_table([[1, 0, 0]], runs=["a"], columns={"loss/chat": np.ones(1)}))
    more = a_table([[1, 0, 0]], runs=["b"], columns={"loss/chat": np.ones(1), "loss/law": np.ones(1)})
    refused(study, more, "the first runs told have loss/chat", "also loss/law", "columns: [loss/chat, loss/law]")
    wider = a_study(tmp_path / "run", columns=["loss/chat", "loss/law"])
    wider.tell_runs(more)
    assert wider.best == ("b", Mixture.vertex(NAMES, "web"), 1.0)


def test_listed_columns_select_and_others_are_reported_as_ignored():
    study = a_study(columns=["loss/chat"])
    telling = study.tell_runs(a_table([[1, 0, 0]]))
    assert (telling.columns, telling.ignored) == (("loss/chat",), ("loss/python",))


def test_a_table_without_any_listed_column_is_refused(tmp_path):
    study = a_study(tmp_path / "run", columns=["loss/law"])
    refused(study, a_table([[1, 0, 0]]), "the study lists loss/law, the table has only loss/chat, loss/python")


def test_an_objective_over_a_column_that_no_run_has_is_refused(tmp_path):
    study = a_study(tmp_path / "run", objective="loss/law")
    refused(study, a_table([[1, 0, 0]]), "unknown column 'loss/law'; available are loss/chat, loss/python")


def test_an_unknown_run_lists_those_not_told_yet():
    study = a_study()
    study.ask(1)
    with pytest.raises(ConfigError, match=r"no run 'search-9'; those not told yet: search-000"):
        study.tell("search-9", losses={"chat": 1.0})


def test_a_tell_without_numbers_says_how_to_tell_a_failure():
    study = a_study()
    with pytest.raises(ConfigError, match=r"tell a failed run by fail\(run\)"):
        study.tell(study.ask(1)[0].run, losses={"chat": math.nan})


def test_known_noise_is_kept(tmp_path):
    study = a_study(tmp_path / "run")
    run = study.ask(1)[0].run
    study.tell(run, losses={"chat": 2.0}, noise={"loss/chat": 0.05})
    assert Study(tmp_path / "run").observations[0].noise == {"loss/chat": 0.05}


def test_scores_alone_are_enough_and_higher_is_better():
    study = a_study(objective="mean(score/*)")
    low, high = study.ask(2)
    study.tell(low.run, scores={"quiz": 0.3})
    study.tell(high.run, scores={"quiz": 0.4})
    assert study.best[::2] == (high.run, -0.4)
    assert study.recommend().mixture == high.mixture


# --- recommend and predict ----------------------------------------------------


def test_the_recommendation_is_far_better_than_an_even_mixture_and_recorded(tmp_path):
    study = a_study(tmp_path / "run", optimizer="mfbo")
    rng = np.random.default_rng(0)
    study.tell_runs(a_table(rng.dirichlet(np.ones(3), 30)))
    recommendation = study.recommend()
    # The best value is 2; 30 noise-free runs leave less than half of what an even mixture loses.
    lost = [losses(m.as_dict())["chat"] - 2 for m in (recommendation.mixture, Mixture.uniform(NAMES))]
    assert lost[0] < 0.5 * lost[1]
    assert recommendation.std["objective"] > 0
    assert Study(tmp_path / "run").recommendation == recommendation


def test_new_results_make_the_recorded_recommendation_void(tmp_path):
    study = a_study(tmp_path / "run")
    study.recommend()
    study.tell_runs(a_table(np.eye(3)))
    assert Study(tmp_path / "run").recommendation is None


def test_a_kl_penalty_draws_the_recommendation_to_the_natural_mixture():
    sizes = {"web": {"tokens": 1}, "code": {"tokens": 1}, "books": {"tokens": 8}}
    table = a_table(np.random.default_rng(0).dirichlet(np.ones(3), 20))
    distances = []
    for weight in (0.0, 10.0):
        study = a_study(optimizer="mfbo", domains=sizes, constraints={"kl": {"weight": weight}})
        study.tell_runs(table)
        distances.append(study.recommend().mixture.distance(Mixture(NAMES, [0.1, 0.1, 0.8])))
    assert distances[1] < 0.05 < distances[0]


def test_predictions_cover_all_told_columns_at_any_rung():
    study = a_study(objective="loss/chat")
    study.tell_runs(a_table(np.eye(3)))
    prediction = study.predict([{"web": 0.5, "code": 0.5}, Mixture.uniform(NAMES)], fidelity="small")
    assert set(prediction.mean) == {"loss/chat", "loss/python", "objective"}
    assert all(values.shape == (2,) for values in prediction.std.values())


# --- the ledger ---------------------------------------------------------------


def test_a_study_without_a_directory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = a_study()
    tell_all(study, study.ask(2))
    study.recommend()
    assert list(tmp_path.iterdir()) == []


def test_the_run_directory_is_a_study_of_its_own(tmp_path):
    study = a_study(tmp_path / "run")
    suggestions = study.ask(2)
    assert ExternalStudy.open(tmp_path / "run").pending == suggestions


@pytest.mark.parametrize(
    "act", [lambda s: s.ask(1), lambda s: s.tell_runs(a_table(np.eye(3))), lambda s: s.recommend()]
)
def test_a_study_that_another_process_holds_is_refused(tmp_path, act):
    study = a_study(tmp_path / "run")
    with RunDirectory(tmp_path / "run").locked(), pytest.raises(StudyError, match="another mixopt"):
        act(study)


def test_a_table_whose_telling_was_cut_short_is_told_whole_the_next_time(tmp_path):
    a_study(tmp_path / "run").tell_runs(a_table(np.eye(3)))
    ledger = RunDirectory(tmp_path / "run").ledger
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-20])
    assert a_study(tmp_path / "run").best is None
    assert len(a_study(tmp_path / "run").tell_runs(a_table(np.eye(3))).trials) == 3
    assert len(ledger.read_bytes()) == len(whole)


def test_an_open_study_sees_what_another_process_told(tmp_path):
    study, other = a_study(tmp_path / "run"), a_study(tmp_path / "run")
    study.ask(2)
    tell_all(other, other.pending)
    assert study.pending == []
    assert {s.run for s in study.ask(1)} == {"search-002"}


def test_objective_budget_and_costs_may_change_at_any_time(tmp_path):
    a_study(tmp_path / "run").tell_runs(a_table(np.eye(3)))
    changed = a_study(tmp_path / "run", objective="loss/python", ladder={"small": 1, "large": 20}, search={"budget": 1})
    assert changed.best[2] == pytest.approx(losses({"web": 1})["python"])
    assert changed.ask(1)[0].cost == 20


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"domains": [*NAMES, "law"]}, "domain law is new"),
        ({"domains": ["web", "code"]}, "domain books was removed"),
        ({"ladder": {"large": 10}}, "rung small was removed"),
    ],
)
def test_changed_domains_and_removed_rungs_are_shown_first(tmp_path, changes, part):
    a_study(tmp_path / "run").tell_runs(a_table([[1, 0, 0], [0, 0, 1]]))
    with pytest.raises(StudyChangedError, match=part):
        a_study(tmp_path / "run", **changes).ask(1)


def test_an_accepted_new_domain_has_weight_zero_in_old_runs(tmp_path):
    a_study(tmp_path / "run").tell_runs(a_table([[1, 0, 0]]))
    config = a_study(domains=[*NAMES, "law"]).config
    study = ExternalStudy(config, tmp_path / "run", accept_changes=True)
    study.ask(1)
    assert Study(tmp_path / "run").history().trials[0].mixture.as_dict() == {"web": 1, "code": 0, "books": 0, "law": 0}


def test_a_directory_of_a_study_that_mixopt_trains_is_refused(tmp_path):
    started_study(tmp_path / "run")
    refused(a_study(tmp_path / "run"), a_table(np.eye(3)), "trained by mixopt itself; choose another --dir")
