"""Marks what takes long; prints one line per fault at the end of a run."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .processes import SECONDS, command_line
from .real import write_study
from .synthetic import outcome

HERE, FAULT = Path(__file__).parent, "fault"


def pytest_collection_modifyitems(items):
    """Keep what starts a Ray in one process, and begin with it, as it takes longest; other tests keep their places."""
    places = [place for place, item in enumerate(items) if item.path.is_relative_to(HERE)]
    ordered = sorted((items[place] for place in places), key=lambda item: item.get_closest_marker("ray") is None)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@dataclass
class Told:
    """What a test did to a study.

    Attributes:
        times: How often.
        lost: What was lost, in words.
    """

    what: str
    times: int = 1
    lost: str = "nothing"
    details: list[str] = field(default_factory=list)

    def line(self, verdict: str) -> str:
        detail = f" ({'; '.join(self.details)})" if self.details else ""
        return f"{verdict:<6} {self.what}{detail}: {self.times}x; lost: {self.lost}"


@pytest.fixture
def fault(request):
    """Note a fault that a test injects; whether it was survived is whether the block ends."""

    @contextmanager
    def note(what, times=1):
        told, verdict = Told(what, times), "ok"
        try:
            yield told
        except BaseException:
            told.lost, verdict = "see the failure", "FAILED"
            raise
        finally:
            request.node.user_properties.append((FAULT, told.line(verdict)))

    return note


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    ended = [report for report in reports if getattr(report, "when", None) == "call"]
    lines = [line for report in ended for kind, line in report.user_properties if kind == FAULT]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Folder of a study file, and what the study finds when nobody disturbs it, in one process."""
    root = tmp_path_factory.mktemp("real")
    path = write_study(root)
    with command_line("run", path, "--dir", root / "undisturbed", cwd=root, log=root / "undisturbed.err") as process:
        assert process.wait(SECONDS) == 0, (root / "undisturbed.err").read_text()
    return root, outcome(root / "undisturbed")
