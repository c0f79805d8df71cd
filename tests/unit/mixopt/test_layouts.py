"""RegMix and olmix files: names, joins, costs, and what they cannot hold."""

import numpy as np
import pytest

from mixopt import ConfigError, MixtureError
from mixopt.layouts import read_olmix, read_regmix, regmix_cost, write_olmix, write_regmix
from mixopt.runs import RunsTable

MIXTURES = "index,train_the_pile_arxiv,train_the_pile_pile_cc\n1,0.25,0.75\n2,0.998,0.0\n"
LOSSES = "index,metric/the_pile_pile_cc_val_loss\n2,3.5\n1,3.25\n"
RATIOS = "run,name,index,web,dclm:art\nz1,swarm-0,0,0.25,0.75\nz2,swarm-1,1,1.0,0.0\n"
METRICS = "run,name,index,arc::olmes,mmlu (BPB v2)\nz2,swarm-1,1,1.5,0.5\nz1,swarm-0,0,2.5,\n"


def regmix(folder, pairs=(("train", "1m"), ("test", "1m"), ("test", "60m")), **replaced):
    for split, size in pairs:
        (folder / f"{split}_mixture_{size}.csv").write_text(MIXTURES)
        (folder / f"{split}_pile_loss_{size}.csv").write_text(LOSSES)
    for name, text in replaced.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def olmix(folder, ratios=RATIOS, metrics=METRICS):
    (folder / "ratios.csv").write_text(ratios)
    (folder / "metrics.csv").write_text(metrics)
    return folder


def runs_of(*ids, rung="top", **fields):
    """A table of one domain with one loss per run."""
    num = len(ids)
    columns = {"loss/x": np.arange(num) + 1.0}
    return RunsTable(
        ("web",), ids, (rung,) * num, np.ones((num, 1)), **{"columns": columns, "costs": np.ones(num), **fields}
    )


# --- RegMix ------------------------------------------------------------------


def test_all_pairs_of_a_folder_become_one_table_cheap_ones_first(tmp_path):
    table = read_regmix(regmix(tmp_path))
    assert table.domains == ("arxiv", "pile_cc")
    assert list(table.columns) == ["loss/pile_cc"]
    assert table.runs == (
        "train-1@1m", "train-2@1m", "test-1@1m", "test-2@1m", "test-1@60m", "test-2@60m",
    )  # fmt: skip
    assert table.costs.tolist() == [1, 1, 1, 1, 60, 60]


def test_losses_are_joined_by_index_and_not_by_place(tmp_path):
    assert read_regmix(regmix(tmp_path, [("train", "1m")])).columns["loss/pile_cc"].tolist() == [3.25, 3.5]


def test_rounded_weights_are_normalized_with_a_note_per_file(tmp_path):
    table = read_regmix(regmix(tmp_path, [("train", "1m")]))
    assert table.weights.tolist() == [[0.25, 0.75], [1.0, 0.0]]
    (note,) = table.notes
    assert note == "train_mixture_1m.csv: normalized the weights of 1 of 2 rows, which summed to 0.998 to 0.998"


def test_costs_follow_from_sizes_unless_they_are_given(tmp_path):
    assert [regmix_cost(size) for size in ("500k", "1m", "1.5M", "60m", "1B")] == [0.5, 1, 1.5, 60, 1000]
    with pytest.raises(ConfigError, match=r"got 'large'.*--cost large=NUMBER"):
        read_regmix(regmix(tmp_path, [("train", "large")]))
    assert read_regmix(tmp_path, {"large": 7}).costs.tolist() == [7, 7]


def test_a_cost_of_a_size_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no size 1b to have a cost, only 1m, 60m"):
        read_regmix(regmix(tmp_path), {"1b": 1000})


def test_pairs_with_fewer_losses_leave_the_others_unknown(tmp_path):
    more = "index,metric/the_pile_arxiv_val_loss,metric/the_pile_pile_cc_val_loss\n1,1,2\n2,3,4\n"
    table = read_regmix(regmix(tmp_path, [("train", "1m"), ("test", "1B")], train_pile_loss_1m=more))
    assert list(table.columns) == ["loss/arxiv", "loss/pile_cc"]
    assert np.isnan(table.columns["loss/arxiv"][2:]).all()


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        ({"train_pile_loss_1m": "index,metric/a\n1,2\n"}, r"train_mixture_1m.csv: index 2 is in this file only"),
        (
            {"train_pile_loss_1m": "index,metric/a\n1,1\n2,1\n3,1\n4,1\n"},
            r"loss_1m.csv: index 3, 4 are in this file only",
        ),
        ({"train_pile_loss_1m": "index,metric/a\n1,1\n1,2\n2,3\n"}, "twice or more is 1"),
        ({"train_pile_loss_1m": "number,metric/a\n1,1\n"}, "expected a column index"),
        ({"train_pile_loss_1m": "index\n1\n2\n"}, "columns beside index"),
        ({"train_pile_loss_1m": "index,metric/a\n1,x\n2,1\n"}, "loss_1m.csv: column 'metric/a' must hold numbers"),
        ({"train_mixture_1m": "index,train_a\n1,0.5\n2,1\n"}, r"mixture_1m.csv: weights must sum to 1.*train-1@1m"),
        ({"train_mixture_1m": "index,train_a,train_the_pile_a\n1,0,1\n2,0,1\n"}, "train_a means the same as another"),
        ({"train_other_loss_1m": LOSSES}, "expected one file train_pile_loss_1m.csv"),
    ],
)
def test_a_pair_that_does_not_fit_together_is_refused(tmp_path, replaced, words):
    with pytest.raises(ConfigError, match=words):
        read_regmix(regmix(tmp_path, [("train", "1m")], **replaced))


def test_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there are none"):
        read_regmix(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder, there is none"):
        read_regmix(tmp_path / "missing")


def test_what_was_read_from_regmix_is_written_under_the_same_names(tmp_path):
    source, copy = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    written = write_regmix(read_regmix(regmix(source)), copy)
    assert written.notes == ()
    assert {path.name for path in written.files} == {path.name for path in source.iterdir()}
    for path in written.files:
        assert path.read_text().splitlines()[0] == (source / path.name).read_text().splitlines()[0]


def test_other_ids_are_numbered_anew_and_what_has_no_place_is_named(tmp_path):
    table = runs_of("a", "b", seeds=(1, 2), noise={"loss/x": np.ones(2)})
    written = write_regmix(table, tmp_path)
    assert [path.name for path in written.files] == ["train_mixture_top.csv", "train_pile_loss_top.csv"]
    assert "numbered anew" in written.notes[0]
    assert written.notes[1] == "left out, the layout has no place for it: cost, seed, noise"
    assert read_regmix(tmp_path, {"top": 1}).runs == ("train-1@top", "train-2@top")


def test_a_rung_that_is_no_file_name_or_a_table_without_losses_cannot_be_written(tmp_path):
    with pytest.raises(MixtureError, match="fidelity name 'a/b'"):
        write_regmix(runs_of("r", rung="a/b"), tmp_path)
    with pytest.raises(ConfigError, match="the table has none; add a loss/ column"):
        write_regmix(runs_of("r", columns={"score/q": np.ones(1)}), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- olmix -------------------------------------------------------------------


def test_a_swarm_is_one_rung_of_runs_with_losses(tmp_path):
    table = read_olmix(olmix(tmp_path), fidelity="30m", cost=30)
    assert table.domains == ("web", "dclm:art")
    assert (table.runs, table.fidelities, table.costs.tolist()) == (("z1", "z2"), ("30m", "30m"), [30, 30])
    assert table.columns["loss/arc::olmes"].tolist() == [2.5, 1.5]
    assert np.isnan(table.columns["loss/mmlu (BPB v2)"][0])


def test_metrics_that_are_better_when_higher_become_scores_by_name_or_pattern(tmp_path):
    assert list(read_olmix(olmix(tmp_path), scores=["arc*"]).columns) == ["score/arc::olmes", "loss/mmlu (BPB v2)"]
    with pytest.raises(ConfigError, match="no metric is called nothing; the file has arc::olmes"):
        read_olmix(tmp_path, scores=["nothing"])


def test_ids_may_be_called_run_id_and_row_numbers_of_pandas_are_no_domain(tmp_path):
    ratios = ",run_id,web\n0,a,1.0\n1,b,1.0\n"
    metrics = "Unnamed: 0,run_id,x\n0,a,1.5\n1,b,2.5\n"
    table = read_olmix(olmix(tmp_path, ratios, metrics))
    assert (table.domains, table.runs, list(table.columns)) == (("web",), ("a", "b"), ["loss/x"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ratios": "run,web\nz1,1\n"}, "metrics.csv: run z2 is in this file only"),
        ({"metrics": "run,arc\nz1,1\n"}, "ratios.csv: run z2 is in this file only"),
        ({"ratios": "id,web\nz1,1\n"}, "expected a column run or run_id"),
        ({"ratios": "run,web\nz1,0.5\nz2,1\n"}, r"ratios.csv: weights must sum to 1.*z1"),
        ({"metrics": "run,arc\nz1,good\nz2,1\n"}, "metrics.csv: column 'arc' must hold numbers"),
        ({"metrics": "run,arc\nz1,inf\nz2,1\n"}, r"loss/arc must be finite.*z1"),
    ],
)
def test_a_swarm_that_does_not_fit_together_is_refused(tmp_path, files, words):
    with pytest.raises(ConfigError, match=words):
        read_olmix(olmix(tmp_path, **files))


def test_olmix_files_say_what_they_cannot_hold(tmp_path):
    table = runs_of("a", columns={"loss/x": np.ones(1), "score/q": np.ones(1)}, costs=np.array([30.0]))
    notes = " ".join(write_olmix(table, tmp_path).notes)
    for part in ("higher is better in q", "the rung top is not in the files", "no place for it: cost"):
        assert part in notes


def test_olmix_files_hold_one_rung_and_every_name_once(tmp_path):
    two = RunsTable(("web",), ("a", "b"), ("s", "l"), np.ones((2, 1)), {"loss/x": np.ones(2)}, np.ones(2))
    with pytest.raises(ConfigError, match="one rung, the table has s, l; keep one"):
        write_olmix(two, tmp_path)
    with pytest.raises(ConfigError, match="columns called x, or a name twice"):
        write_olmix(runs_of("a", columns={"loss/x": np.ones(1), "score/x": np.ones(1)}), tmp_path)
    with pytest.raises(ConfigError, match="columns called index"):
        write_olmix(runs_of("a", columns={"loss/index": np.ones(1)}), tmp_path)
    assert list(tmp_path.iterdir()) == []
