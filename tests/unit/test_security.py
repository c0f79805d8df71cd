"""Laws of security: nothing loaded can run code, no name leads out of its folder, no secret is kept, no text is markup."""

import ast
import logging
import re
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from mixopt.config import load_config, validate, validate_external
from mixopt.errors import ConfigError, MixtureError, ResourceError, StudyError
from mixopt.experiments import build
from mixopt.experiments.external import ExternalStudy
from mixopt.experiments.public import scores_folder
from mixopt.experiments.report import write_report
from mixopt.mixture import check_name
from mixopt.proposal import Contender
from mixopt.runs import RunsTable
from mixopt.storage import RunDirectory
from mixopt.study import Study
from mixopt.tracking import MlflowTracker, shown_uri, without_secrets
from tests.e2e.command_line import mixopt, small_study
from tests.unit.experiments.finished_study import HEADER, finished_study

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("mixopt", "proxies", "search", "experiments") for path in (ROOT / folder).rglob("*.py")]
SECRET = "s3cret-of-the-tests"

# --- nothing that is loaded can run code ----------------------------------------------


def calls(path):
    """Every call of a file as (dotted name, {keyword: source}, its node)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node


def is_unsafe(name, keywords, node):
    last = name.rpartition(".")[2]
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen") or keywords.get("shell") == "True":
        return True
    if name == "torch.load":
        return keywords.get("weights_only") != "True"
    if name in ("np.load", "numpy.load"):
        return keywords.get("allow_pickle") != "False"
    if name == "yaml.load":
        return keywords.get("Loader") not in ("yaml.SafeLoader", "_UniqueKeyLoader")
    return last in ("unsafe_load", "full_load", "read_pickle", "mktemp")


UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "telnetlib"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_what_could_run_code(path):
    assert [
        f"line {node.lineno}: {name}" for name, keywords, node in calls(path) if is_unsafe(name, keywords, node)
    ] == []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert {module.partition(".")[0] for module in modules} & UNSAFE_MODULES == set()


def test_the_scan_finds_what_it_looks_for(tmp_path):
    wrong = tmp_path / "wrong.py"
    lines = [
        "eval(x)",
        "torch.load(p)",
        "np.load(p)",
        "yaml.load(t)",
        "run(c, shell=True)",
        "yaml.load(t, Loader=yaml.Loader)",
    ]
    wrong.write_text("\n".join(lines))
    assert sum(is_unsafe(*call) for call in calls(wrong)) == len(lines)


def test_the_loader_of_study_files_makes_no_objects(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch made']\n")
    with pytest.raises(ConfigError, match="no valid YAML"):
        load_config(path)
    assert not Path("made").exists()


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt"])
def test_an_archive_of_scores_is_not_unpacked_outside_its_folder(tmp_path, name):
    path = tmp_path / "scores.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ConfigError, match="outside its folder"):
        scores_folder(path)


# --- no name leads out of its folder ---------------------------------------------------

BAD_NAMES = (
    "../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "x/../../y", "a\0b", "a\nb", "x" * 300, ".hidden", "-rf", "a b",
    "~root", "é", "C:", "<script>",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_file_name_is_refused_wherever_it_would_name_one(name):
    with pytest.raises(MixtureError):
        check_name(name, "domain")
    good = {"name": "s", "domains": {"web": {"path": "web"}}, "objective": {"expression": "loss/web"}}
    places = (
        {"name": name},
        {"domains": {name: {"path": "web"}}},
        {"eval_sets": {name: {"path": "web"}}},
        {"ladder": [{"name": name, "tokens": 100}]},
        {"validation": {"mixtures": {name: {"web": 1.0}}}},
    )
    for place in places:
        with pytest.raises(ConfigError):
            validate({**good, **place}, "study.yaml")
    outside = {"name": "s", "trainer": "external", "domains": ["web"], "objective": "loss/web"}
    for place in ({"name": name}, {"domains": [name]}, {"ladder": {name: 1}}):
        with pytest.raises(ConfigError):
            validate_external({**outside, **place}, "study.yaml")


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "x/../../y", "a\0b", "a\nb", "x" * 300]
)
def test_a_run_directory_gives_no_place_outside_itself(tmp_path, name):
    files = RunDirectory(tmp_path / "run")
    for place in (files.trial, files.job, files.result):
        with pytest.raises(StudyError, match="without slashes"):
            place(name)
    for place in (files.expert, files.score):
        try:
            found = place(name)
        except StudyError:
            continue
        assert found.parent.parent == tmp_path / "run"  # with its suffix it is a plain name


@pytest.mark.parametrize("run", ["../../x", "/etc/passwd", "C:\\x", "CON", "x" * 300, "a/b"])
def test_the_id_of_a_users_run_is_a_label_and_never_a_path(tmp_path, run):
    study = ExternalStudy.create(
        tmp_path / "a" / "run", domains=["web"], objective="loss/chat", search={"optimizer": "random"}
    )
    table = RunsTable(("web",), (run,), ("target",), [[1.0]], {"loss/chat": [2.0]}, [1.0])
    study.tell_runs(table)
    study.recommend()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "a/run/.lock", "a/run/study.jsonl", "a/run/study.yaml",
    }  # fmt: skip


def test_trials_that_are_named_on_the_command_line_must_be_in_the_ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = finished_study(tmp_path / "run").files.path
    (directory / "study.yaml").write_text(
        yaml.safe_dump({
            "name": "s", "domains": {d.name: {"path": "x"} for d in HEADER.domains}, "objective": dict(HEADER.objective),
        })
    )  # fmt: skip
    answer = mixopt("export-model", directory, "--trial", "../../x", "--out", "model")
    assert answer.code in (1, 2)
    assert "Traceback" not in answer.err
    assert not (tmp_path / "model").exists()


# --- no secret is kept -----------------------------------------------------------------

URIS = (
    f"http://me:{SECRET}@host:5000/mlflow", f"https://{SECRET}@host", f"postgresql+psycopg2://me:p@{SECRET}@db/x",
    f"http://host/?token={SECRET}", f"mysql://db/x?user=me&ssl_password={SECRET}&y=1",
)  # fmt: skip


@pytest.mark.parametrize("uri", URIS)
def test_the_secrets_of_a_uri_are_neither_shown_nor_kept(uri):
    assert SECRET not in shown_uri(uri)
    assert SECRET not in without_secrets(uri)
    assert SECRET not in shown_uri(f"request to {uri} failed")
    assert without_secrets(without_secrets(uri)) == without_secrets(uri)


@pytest.mark.parametrize(
    "uri", ["none", "default", "http://host:5000/a", "sqlite:////data/a@b.db", "postgresql://db/x?y=1"]
)
def test_a_uri_without_secrets_stays_as_it_is(uri):
    assert without_secrets(uri) == shown_uri(uri) == uri


@pytest.mark.faults
@pytest.mark.mlflow
def test_a_real_run_with_secrets_leaves_them_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME", "MIXOPT_TOKEN"):
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    study = small_study(tmp_path, run={"executor": "serial", "workers": 1, "tracking_uri": store})
    text = study.read_text()
    first = mixopt("-v", "run", study)
    assert first.code == 0, first.err
    mixopt("report", study)
    study.write_text(text.replace(store, f"http://me:{SECRET}@127.0.0.1:9/mlflow"))
    answers = [first, *(mixopt("-vv", *words) for words in (("run", study), ("sync", study), ("doctor", study)))]
    study.unlink()
    assert [part for answer in answers for part in (answer.out, answer.err) if SECRET in part] == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"study.jsonl", "study.yaml", "report.html", "mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_the_resolved_study_file_keeps_no_secret_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    study = small_study(tmp_path, run={"tracking_uri": f"http://me:{SECRET}@host:5000"})
    location = build.locate(study)
    with caplog.at_level(logging.WARNING):
        build.save_config(location)
    kept = RunDirectory(location.directory).config
    assert SECRET not in kept.read_text()
    assert load_config(kept).run.tracking_uri == "http://host:5000"
    assert "MLFLOW_TRACKING_PASSWORD" in caplog.text
    assert SECRET not in caplog.text


def test_an_error_about_a_store_hides_its_secrets():
    for uri in (f"http://me:{SECRET}@127.0.0.1:9", f"ftp://me:{SECRET}@host"):
        with pytest.raises((ResourceError, ConfigError)) as caught:
            MlflowTracker(uri)
        assert SECRET not in str(caught.value)


# --- no text is markup -----------------------------------------------------------------

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}'


class Tags(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_data(self, data):
        self.text.append(data)


def hostile_study(folder):
    """A finished study whose every free text is an attack."""
    study = finished_study(folder, note=HOSTILE)
    study.begin(replace(HEADER, name=HOSTILE))
    study.stop(HOSTILE)
    plain = finished_study(folder.with_name("plain"))
    recommendation = replace(plain.recommendation, reason=HOSTILE, recommended_by=HOSTILE)
    rivals = [Contender(c.label, c.mixture, c.mean, c.std) for c in plain.contenders]
    study.recommend(recommendation, rivals)
    return study


def test_the_report_escapes_every_text_of_a_study_also_in_figures(tmp_path):
    study = hostile_study(tmp_path / "run")
    page = write_report(Study(study.files.path), tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert not [a for a in tags.attributes if a[1].startswith("on") or (a[0] == "img" and a[2] == "x")]
    assert HOSTILE in "".join(tags.text)  # it is shown, as text
    assert "49" not in re.findall(r"onerror=alert\(2\)&gt;(..)", page)
    assert "<svg" in page
    assert re.search(r"Content-Security-Policy.*default-src 'none'", page)


# --- nobody else can reach it ----------------------------------------------------------


def test_the_dashboard_listens_on_this_machine_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = mixopt("dashboard", "--help")
    assert re.search(r"default:\s+127\.0\.0\.1", answer.out)
    assert re.search(r"default:\s+127\.0\.0\.1", mixopt("serve", "--help").out)
