"""What a person sees of a study in MLflow, in a real browser."""

import re
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from mixopt.study import Study
from mixopt.tracking import MlflowTracker, default_uri
from tests.e2e.command_line import mixopt
from tests.unit.experiments.test_cli import run_directory

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mlflow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium"),
]


@pytest.fixture
def page():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 800})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(address, attempts=120):
    for _ in range(attempts):
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"nothing answers at {address}")


def test_from_the_list_of_runs_to_the_curve_of_a_trial(tmp_path, page, free_port):
    directory = run_directory(tmp_path)
    tracker = MlflowTracker(default_uri(directory))
    tracker.project(Study(directory))
    words = ("--port", free_port, "--tracking-uri", default_uri(directory), "--json")
    answer = mixopt("dashboard", directory, *words).data
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    server = subprocess.Popen(answer["command"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{free_port}/health")
        page.goto(answer["url"])
        study = page.locator("[role=row]").filter(has=page.get_by_role("link", name="three-sets", exact=True)).last
        study.locator("button").first.click()
        headers = page.get_by_role("columnheader").all_inner_texts()
        assert {"objective", "cost", "fidelity"} <= {text.strip() for text in headers}
        page.get_by_role("link", name="search-008 top", exact=True).click()
        page.get_by_text("Model metrics", exact=True).click()
        page.get_by_placeholder("Search metric charts").fill("train/loss")
        page.locator(".js-plotly-plot path.js-line").first.wait_for()
        assert page.get_by_text(re.compile(r"search-008 top")).count()
    finally:
        server.terminate()
        server.wait()
    assert not problems
