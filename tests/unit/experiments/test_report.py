import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from mixopt.experiments import comparison as comparison_module
from mixopt.experiments.comparison import compare, costs
from mixopt.experiments.external import ExternalStudy
from mixopt.experiments.report import write_report
from mixopt.experiments.sentences import commands, gain_sentences, mixture_rows
from mixopt.fidelity import Ladder
from mixopt.mixture import Domain, Mixture
from mixopt.objective import EvalSet
from mixopt.observation import Observation, Role, Status, Trial
from mixopt.proposal import Recommendation
from mixopt.protocols import TrialResult
from mixopt.study import Study
from tests.unit.experiments.finished_study import (
    EVAL_SETS,
    HEADER,
    NAMES,
    expert,
    finished_study,
    losses,
    run,
    started_study,
    with_config,
)

VOID = {"meta", "link", "br", "hr", "img", "input", "use"}


class Page(HTMLParser):
    """Collects attributes and text, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]


def report(study, tmp_path, **options):
    return write_report(study, tmp_path / "report.html", **options).read_text(encoding="utf-8")


def objective_of(study, label):
    return next(c for c in compare(study) if (c.label, c.column) == (label, "objective"))


def factor():
    """What a loss shifted by one nat adds to the objective, a mean of two losses in bits per byte."""
    return (EVAL_SETS[0].bits_per_byte + EVAL_SETS[1].bits_per_byte) / 2


def gap():
    """Noise-free objective of uniform minus recommended."""
    study_losses = [losses(m.weights, "top") for m in (Mixture.uniform(NAMES), Mixture(NAMES, [0.25, 0.4, 0.25, 0.1]))]
    return sum((study_losses[0][s.name] - study_losses[1][s.name]) * s.bits_per_byte for s in EVAL_SETS[:2]) / 2


def test_difference_is_paired_by_seed_and_its_error_pooled(tmp_path):
    same = (0.10, -0.10, 0.30)
    noise = {"recommended": same, "natural": same, "uniform": (0.11, -0.06, 0.34)}
    comparison = objective_of(finished_study(tmp_path, seeds=(1, 2, 3), noise=noise), "uniform")
    # Paired: 0.01, 0.04, 0.04 beyond the gap, however noisy the seeds. Residual sum of squares of the
    # two-way layout: 2/3 of 0.0006, over (3 - 1)(3 - 1) degrees of freedom.
    assert comparison.difference == pytest.approx(gap() + 0.03 * factor())
    assert comparison.standard_error == pytest.approx((2 * 0.0001 / 3) ** 0.5 * factor())
    assert (comparison.num_pairs, comparison.freedom) == (3, 4)


def test_standard_error_is_that_of_least_squares(tmp_path):
    """A reference: fit contender and seed effects by least squares, look at the residual."""
    rng = np.random.default_rng(0)
    noise = {label: tuple(rng.normal(0, 0.1, 4)) for label in ("recommended", "natural", "uniform")}
    study = finished_study(tmp_path, seeds=(1, 2, 3, 4), noise=noise)
    design = np.array([[*np.eye(3)[c], *np.eye(4)[r]] for c in range(3) for r in range(4)])
    values = np.array([value for label in noise for value in noise[label]])
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    expected = (2 * (residual @ residual) / 6 / 4) ** 0.5 * factor()
    assert objective_of(study, "natural").standard_error == pytest.approx(expected)


def test_beyond_noise_is_a_five_percent_test(tmp_path):
    """Over 400 draws without any effect, the share called clear is 0.05 within four standard errors."""
    rng, clear, num = np.random.default_rng(1), 0, 400
    for _ in range(num):
        results = [{seed: rng.normal() for seed in (1, 2)} for _ in range(3)]
        variance, freedom = comparison_module._noise(results)
        difference = np.mean([results[1][s] - results[0][s] for s in (1, 2)])
        clear += abs(difference) >= comparison_module.student_95(freedom) * (2 * variance / 2) ** 0.5
    assert abs(clear / num - 0.05) < 4 * (0.05 * 0.95 / num) ** 0.5


def test_mean_and_spread_are_over_seeds(tmp_path):
    noise = {"recommended": (0.1, -0.1), "natural": (0, 0), "uniform": (0, 0)}
    comparison = objective_of(finished_study(tmp_path, noise=noise), "recommended")
    assert comparison.spread == pytest.approx(0.1 * 2**0.5 * factor())
    assert comparison.mean == pytest.approx(comparison.predicted_mean - 0.02 * factor())
    assert comparison.predicted_std == pytest.approx(0.03)


def test_columns_are_in_the_unit_of_the_objective(tmp_path):
    study = finished_study(tmp_path, noise=dict.fromkeys(("recommended", "natural", "uniform"), (0, 0)))
    comparison = next(c for c in compare(study) if (c.label, c.column) == ("uniform", "loss/code"))
    nats = losses(Mixture.uniform(NAMES).weights, "top")["code"]
    assert comparison.mean == pytest.approx(nats * EVAL_SETS[1].bits_per_byte)
    assert comparison.predicted_mean == pytest.approx((nats + 0.02) * EVAL_SETS[1].bits_per_byte)


def test_every_column_of_the_objective_is_compared_for_every_contender(tmp_path):
    keys = [(c.column, c.label) for c in compare(finished_study(tmp_path))]
    labels = ("recommended", "natural", "uniform")
    assert keys == [(c, label) for c in ("objective", "loss/jargon", "loss/code") for label in labels]


def test_validation_runs_of_an_older_recommendation_do_not_count(tmp_path):
    study = finished_study(tmp_path)
    before = objective_of(study, "recommended")
    old = Trial("old", Role.VALIDATION, Mixture.vertex(NAMES, "web"), "top", 101, "validation", label="recommended")
    run(study, [old])
    assert objective_of(study, "recommended") == before


@pytest.mark.parametrize(
    ("uniform_noise", "phrase"),
    [((0.0, 0.0), "it wins beyond noise"), ((-0.3, -0.3), "it loses beyond noise"), ((-0.3, 0.3), "within noise")],
)
def test_the_gain_is_said_plainly_also_when_there_is_none(tmp_path, uniform_noise, phrase):
    study = finished_study(tmp_path, noise={"recommended": (0, 0), "natural": (0, 0), "uniform": uniform_noise})
    sentence = next(s for s in gain_sentences(study, compare(study)) if s.startswith("Against uniform"))
    assert phrase in sentence


def test_one_seed_gives_no_standard_error(tmp_path):
    study = finished_study(tmp_path, seeds=(1,), noise={"recommended": (0,), "natural": (0,), "uniform": (0,)})
    comparison = objective_of(study, "uniform")
    assert (comparison.standard_error, comparison.spread, comparison.is_clear) == (None, None, False)
    assert "no standard error" in " ".join(gain_sentences(study, compare(study)))


def test_the_weight_of_the_evidence_is_said(tmp_path):
    study = finished_study(tmp_path)
    said = " ".join(gain_sentences(study, compare(study)))
    assert "2 degrees of freedom" in said
    assert "4.3 standard errors" in said


def test_compare_is_empty_before_a_recommendation(tmp_path):
    assert compare(started_study(tmp_path)) == []


def test_costs_add_up_to_the_charge_of_all_trials(tmp_path):
    study = finished_study(tmp_path)
    total = sum(trial.price(HEADER.ladder) for trial in study.trials)
    assert sum(phase.cost for phase in costs(study)) == pytest.approx(total)
    assert [phase.role for phase in costs(study)] == ["expert", "search", "validation"]


def test_epochs_are_weight_times_length_over_available_tokens(tmp_path):
    python = mixture_rows(finished_study(tmp_path), target_tokens=3_000_000)[1]
    assert python["epochs_target"] == pytest.approx(0.4 * 3_000_000 / 150_000)
    assert python["epochs_proxy"] == pytest.approx(0.4 * 512_000 / 150_000)


def test_report_is_one_file_without_outside_resources(tmp_path):
    text = report(finished_study(tmp_path), tmp_path, target_tokens=2_000_000)
    assert not re.search(r"https?://|//cdn|@import|<script[ >]|<link|<iframe", text)
    links = Page(text).values("href", "src", "xlink:href", "srcset", "action")
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


def test_ids_are_unique_and_every_reference_resolves(tmp_path):
    text = report(finished_study(tmp_path), tmp_path)
    page = Page(text)
    ids = page.values("id")
    references = [link[1:] for link in page.values("href", "xlink:href") if link.startswith("#")]
    references += re.findall(r"url\(#([^)]+)\)", text)
    assert len(ids) == len(set(ids))
    assert references
    assert set(references) <= set(ids)


def test_user_text_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    text = report(finished_study(tmp_path, note=evil), tmp_path)
    assert evil not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;mid&lt;/b&gt;" in text


def test_every_trial_is_in_the_table(tmp_path):
    study = finished_study(tmp_path)
    text = report(study, tmp_path)
    assert all(f'<th scope="row">{trial.id}</th>' in text for trial in study.trials)


def downloads(text):
    """{file name: rows} of all links that hold a CSV."""
    page, found = Page(text), {}
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    names = iter([value for tag, name, value in page.attributes if tag == "a" and name == "download"])
    for link in links:
        if link.startswith("data:text/csv"):
            found[next(names)] = list(csv.DictReader(io.StringIO(unquote(link.partition(",")[2]))))
    return found


def test_the_numbers_can_be_downloaded_and_are_the_studys(tmp_path):
    study = finished_study(tmp_path)
    tables = downloads(report(study, tmp_path))
    runs = tables["three-sets-runs.csv"]
    assert len(runs) == len(study.observations)
    frame = study.to_frame()
    assert [float(row["loss/jargon"]) for row in runs] == pytest.approx(frame["loss/jargon"].tolist(), rel=1e-9)
    assert [row["trial"] for row in tables["three-sets-trials.csv"]] == [trial.id for trial in study.trials]
    weights = {row["domain"]: float(row["recommended"]) for row in tables["three-sets-mixture.csv"]}
    assert weights == pytest.approx(study.recommendation.mixture.as_dict())
    assert len(tables["three-sets-comparison.csv"]) == len(compare(study))


def test_every_figure_has_its_numbers_a_heading_and_a_description(tmp_path):
    text = report(with_config(finished_study(tmp_path / "run")), tmp_path)
    num = text.count("<figure ")
    assert num == 11
    assert text.count('role="img"') == text.count("<figcaption>") == num
    assert len(downloads(text)) == num + 5
    assert text.count("<caption>") == text.count("<table>")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_five_questions_come_in_order_and_are_answered_at_the_top(tmp_path):
    text = report(finished_study(tmp_path), tmp_path)
    places = [
        text.index(f'<h2 id="{name}">') for name in ("mixture", "gain", "certainty", "cost", "next", "behind", "trials")
    ]
    assert places == sorted(places)
    assert text.index('<nav class="short"') < places[0]


def test_the_page_forbids_scripts_and_network(tmp_path):
    text = report(finished_study(tmp_path), tmp_path)
    assert "default-src 'none'" in text
    assert not re.search(r"\son\w+=", text)


def test_what_to_type_next_names_the_export_and_the_run(tmp_path):
    said = dict(commands(finished_study(tmp_path / "runs" / "mine")))
    assert "mixopt export runs/mine --format megatron" in said.values()
    assert "mixopt run runs/mine" in said.values()


def test_a_figure_that_does_not_apply_is_left_out_with_a_reason(tmp_path):
    text = report(finished_study(tmp_path), tmp_path)
    assert 'id="figure-responses"' not in text
    assert "What each domain does. Left out: the study&#39;s surrogate could not be opened." in text


@pytest.mark.parametrize("labels", [["web"], NAMES])
def test_a_study_of_one_trial_and_one_of_experts_only_get_a_report(tmp_path, labels):
    study = Study(tmp_path)
    study.begin(HEADER)
    run(study, [expert(name) for name in labels])
    text = report(with_config(study), tmp_path)
    assert "no mixture is recommended yet" in text
    assert 'id="figure-experts"' in text


def test_a_study_whose_trials_all_failed_gets_a_report(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    study.propose([expert(name) for name in NAMES])
    for name in NAMES:
        study.finish(TrialResult(f"expert-{name}", Status.ABANDONED, (), "loss is not finite"))
    text = report(with_config(study), tmp_path)
    assert "4 runs gave no result" in text
    assert text.count("loss is not finite") >= 4


def test_an_external_study_gets_a_report(tmp_path):
    study = ExternalStudy.create(tmp_path, domains=["a", "b", "c"], objective="mean(loss/x, loss/y)", ladder={"t": 2.0})
    rng = np.random.default_rng(0)
    for suggestion in study.ask(5):
        study.tell(
            suggestion.run, {"x": 2 + suggestion.weights["a"], "y": 3 - suggestion.weights["a"] + 0.01 * rng.normal()}
        )
    study.recommend()
    text = report(Study(tmp_path), tmp_path)
    Page(text)
    assert "mixopt trains nothing here" in text
    assert 'id="figure-responses"' in text
    assert "mixopt suggest" in text


def large_study(directory, *, num_domains=64, num_trials=300):
    """A search of many runs over many domains, recommended but not validated."""
    domains = tuple(Domain(f"domain-{i:02d}", 1_000_000 + i, 10, 4_000_000) for i in range(num_domains))
    names, sets = [d.name for d in domains], tuple(EvalSet(d.name, 1000, 3000) for d in domains)
    ladder = Ladder.from_flops([("low", "m", 10, 1000, 1e9), ("top", "m", 10, 4000, 4e9)], fixed_cost=0.05)
    objective = {"expression": "mean(loss/domain-0*)", "unit": "bits_per_byte"}
    study = Study(directory)
    study.begin(replace(HEADER, domains=domains, eval_sets=sets, ladder=ladder, objective=objective))
    rng = np.random.default_rng(0)
    mixtures = [Mixture.normalized(names, row) for row in rng.dirichlet(np.full(num_domains, 0.3), size=num_trials)]
    trials = [Trial(f"search-{i:04d}", Role.SEARCH, m, "top", i, "sobol", "next point") for i, m in enumerate(mixtures)]
    study.propose(trials)
    for trial in trials:
        values = {name: float(2 - trial.mixture.weights[i]) for i, name in enumerate(names)}
        study.finish(TrialResult(trial.id, Status.DONE, (Observation(trial.id, "top", values),)))
    mean, std = {"objective": 1.2}, {"objective": 0.01}
    study.recommend(Recommendation(mixtures[0], "top", mean, std, 0.02, ("search-0000",), "sobol"), [])
    return study


def test_many_domains_and_trials_give_a_page_of_a_few_megabytes(tmp_path):
    text = report(large_study(tmp_path), tmp_path)
    assert len(text) < 2_000_000
    tables = downloads(text)
    assert len(tables["three-sets-runs.csv"]) == len(tables["three-sets-trials.csv"]) == 300
    without_numbers = re.sub(r'href="data:[^"]*"', "", text)
    assert len(without_numbers) < 500_000
    assert "40 smallest are drawn together" in text
    assert "Shown are the newest 150 of 300" in text


def test_unfinished_study_gets_a_report_that_says_what_is_missing(tmp_path):
    text = report(started_study(tmp_path), tmp_path)
    assert "This study is not finished" in text
    assert "no mixture is recommended yet" in text
    assert "1 of 14 trials are not finished" in text


def test_study_without_any_trial_gets_a_report(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    assert "No trial has been proposed yet" in report(study, tmp_path)


def test_equal_ledgers_give_equal_reports(tmp_path):
    finished_study(tmp_path / "a")
    assert report(Study(tmp_path / "a"), tmp_path) == report(Study(tmp_path / "a"), tmp_path)
