"""Marks what takes long; prints one line per fault at the end of a run."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from .processes import SECONDS, command_line
from .real import write_study
from .synthetic import outcome

LINES = pytest.StashKey[list[str]]()


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
        told, lines = Told(what, times), request.config.stash.setdefault(LINES, [])
        try:
            yield told
        except BaseException:
            told.lost = "see the failure"
            lines.append(told.line("FAILED"))
            raise
        lines.append(told.line("ok"))

    return note


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(LINES, [])
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
