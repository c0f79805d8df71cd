"""Proxies through the command line: exported to transformers, and bad input of theirs from the study file on."""

import hashlib
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mixopt.observation import Status
from mixopt.proxies.scoring import ScoringRows
from mixopt.proxies.tokens import TokenShard
from mixopt.study import Study
from tests.e2e.command_line import mixopt, small_study

PROXY = {"width": 32, "head_dim": 16, "experts": 4, "top_k": 2, "sequence_length": 32, "batch_size": 2}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run directory of a finished study; only the last test changes it."""
    root = tmp_path_factory.mktemp("finished")
    path = small_study(root, proxy=PROXY, validation={"seeds": 0})
    done = mixopt("run", path, "--dir", root / "run", "--json")
    assert done.code == 0, done.err
    return root / "run"


def change(path, **sections):
    """Change sections of a study file; a section that is None is dropped."""
    study = yaml.safe_load(path.read_text())
    changed = {key: value for key, value in {**study, **sections}.items() if value is not None}
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    return path


def refused(answer, code, *parts):
    """One message that holds all parts, and this exit code."""
    lines = [line for line in answer.err.splitlines() if line and not line.startswith(" ")]
    assert answer.code == code, answer.err
    assert len(lines) == 1, answer.err
    assert [part for part in parts if part not in lines[0]] == [], answer.err


# --- export-model -------------------------------------------------------------


def test_an_exported_trial_has_the_losses_that_the_study_measured(finished, tmp_path):
    transformers = pytest.importorskip("transformers")
    answer = mixopt("export-model", finished, "--trial", "search-000", "--out", tmp_path / "hf", "--json")
    assert answer.code == 0, answer.err
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")) == model.config.vocab_size
    (folder,) = (finished / "tokens").glob("eval-web-*")
    rows = ScoringRows.cut(TokenShard(folder), PROXY["sequence_length"])
    with torch.no_grad():
        logprobs = model(torch.from_numpy(rows.inputs)).logits.log_softmax(-1)
    chosen = logprobs.gather(-1, torch.from_numpy(rows.targets).unsqueeze(-1)).squeeze(-1).numpy()[rows.mask]
    assert -np.mean(chosen, dtype=np.float64) == pytest.approx(answer.data["losses"]["web"], abs=2e-5)


def test_the_card_says_where_the_model_comes_from(finished, tmp_path):
    answer = mixopt("export-model", finished, "--trial", "search-001", "--out", tmp_path / "hf", "--json")
    trial = Study(finished).trial("search-001")
    assert answer.data["mixture"] == trial.mixture.as_dict()
    assert (answer.data["study"], answer.data["rung"]) == ("small", "top")
    card = (tmp_path / "hf" / "README.md").read_text()
    for text in ("search-001", "small", "| rung | top |", "web 0.", answer.data["fingerprint"]):
        assert text in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_mixtral_without_the_bias_says_how_many_tokens_go_elsewhere(finished, tmp_path):
    words = ("export-model", finished, "--trial", "search-000", "--architecture", "mixtral")
    answer = mixopt(*words, "--out", tmp_path / "hf")
    assert "pairs go to other experts; the mean loss" in answer.out
    assert "pairs go to other experts" in (tmp_path / "hf" / "README.md").read_text()
    again = mixopt(*words, "--out", tmp_path / "hf", "--force", "--json")
    assert again.data["architecture"] == "mixtral"
    assert 0 < again.data["dropped_bias"]["rerouted"] < 1


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--trial", "search-099"], 1, ["unknown trial 'search-099'"]),
        (["--trial", "search-000", "--format", "gguf"], 2, ["--format: expected hf, got 'gguf'"]),
        (["--trial", "search-000", "--architecture", "bert"], 2, ["expected auto or mixtral, got 'bert'"]),
    ],
)
def test_wrong_use_of_the_export_is_named_and_nothing_is_written(finished, tmp_path, words, code, parts):
    refused(mixopt("export-model", finished, *words, "--out", tmp_path / "hf"), code, *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_study_file_that_describes_another_proxy_is_named(finished, tmp_path):
    study = change(small_study(tmp_path), proxy={**PROXY, "width": 64})
    answer = mixopt("export-model", study, "--dir", finished, "--trial", "search-000", "--out", tmp_path / "hf")
    refused(answer, 2, "the study file describes another proxy than the one search-000", "name the run directory")


def test_a_trial_of_another_version_is_one_error_and_one_that_is_gone_too(finished, tmp_path):
    state = finished / "trials" / "search-000" / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        header = json.loads(file.metadata()["mixopt"])
    save_file(load_file(state), state, metadata={"mixopt": json.dumps({**header, "version": 99})})
    words = ("export-model", finished, "--trial", "search-000", "--out", tmp_path / "hf")
    refused(mixopt(*words), 1, str(state), "expected a checkpoint of version", "got version 99", "remove")
    state.unlink()
    refused(mixopt(*words), 1, "the weights of search-000 are gone")
    assert not (tmp_path / "hf").exists()


# --- bad input ----------------------------------------------------------------


def test_a_domain_whose_every_document_is_held_out_has_no_tokens_and_is_named(tmp_path):
    study = small_study(tmp_path)
    texts = (f"a document {i} of words" for i in range(1000))
    held_out = next(t for t in texts if hashlib.sha256(t.encode()).digest()[0] < 0.2 * 255)
    (tmp_path / "text" / "web.jsonl").write_text(json.dumps({"text": held_out}) + "\n")
    refused(mixopt("run", study), 2, "domains.web: 0 training tokens", "add text, merge it", "drop it")
    assert not list(tmp_path.rglob("study.jsonl"))


def test_a_study_of_a_single_domain_runs_to_its_only_mixture(tmp_path):
    study = small_study(tmp_path, objective={"expression": "loss/web", "unit": "nats_per_token"})
    path = tmp_path / "text" / "web.jsonl"
    change(study, domains={"web": {"path": str(path), "holdout": 0.2}}, search={"batch_size": 2, "budget": 1})
    answer = mixopt("run", study, "--json")
    assert answer.code == 0, answer.err
    assert answer.data["recommendation"]["weights"] == {"web": 1.0}


def test_sequences_longer_than_any_document_are_packed(tmp_path):
    study = small_study(tmp_path, proxy={**PROXY, "sequence_length": 256}, validation={"seeds": 0})
    answer = mixopt("run", study, "--json")
    assert answer.code == 0, answer.err
    ledger = Study(tmp_path / "runs" / "small")
    shard = TokenShard(next((tmp_path / "runs" / "small" / "tokens").glob("web-*")))
    assert max(np.diff(shard.offsets)) < 256
    assert {trial.status for trial in ledger.trials} == {Status.DONE}


def test_where_every_run_diverges_nothing_is_recommended_and_each_has_its_reason(tmp_path):
    study = small_study(tmp_path, proxy={**PROXY, "learning_rate": 1e4, "warmup_steps": 1}, validation={"seeds": 0})
    answer = mixopt("run", study)
    assert answer.code == 1, answer.err
    assert "nothing to recommend from; search-000 is abandoned: diverged: loss" in answer.err
    assert "Traceback" not in answer.err
    assert not list(tmp_path.rglob("mixture.yaml"))
    troubled = mixopt("status", study, "--json").data["troubled"]
    assert [item["status"] for item in troubled] == ["abandoned", "abandoned"]
    assert all(item["note"].startswith("diverged: loss") for item in troubled)


@pytest.mark.parametrize(
    ("sections", "code", "parts"),
    [
        (
            {"run": {"executor": "serial", "tracking_uri": "none", "device": "tpu"}},
            2,
            ["run.device", "'tpu'", "cuda:N"],
        ),
        ({"proxy": {"dtype": "float8"}}, 2, ["proxy.dtype", "'float8'", "bfloat16"]),
    ],
)
def test_an_unknown_device_or_dtype_is_refused_before_any_work(tmp_path, sections, code, parts):
    refused(mixopt("run", small_study(tmp_path, **sections)), code, *parts)
    assert not list(tmp_path.rglob("study.jsonl"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path):
    refused(mixopt("run", small_study(tmp_path), "--device", "cuda"), 1, "run.device: cuda asked for", "device: auto")
    assert not list(tmp_path.rglob("study.jsonl"))
