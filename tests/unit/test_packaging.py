"""The wheel holds what the repository holds, under the one name `mixopt`."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED_AS = {
    "mixopt": "mixopt",
    "proxies": "mixopt/proxies",
    "search": "mixopt/search",
    "experiments": "mixopt/experiments",
}


def source_tree(folder):
    """What a build needs, copied: setuptools leaves its own folders where it builds."""
    for name in INSTALLED_AS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = source_tree(tmp_path_factory.mktemp("source"))
    out = tmp_path_factory.mktemp("wheel")
    # Without isolation nothing is downloaded; the build needs setuptools alone.
    offline = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        *offline,
        "--wheel-dir",
        str(out),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(out.glob("mixopt-*.whl"))) as archive:
        yield {name: archive.read(name) for name in archive.namelist()}


def wanted(pattern, *folders):
    """{name in the wheel: file in the repository}."""
    found = {}
    for folder in folders or INSTALLED_AS:
        for path in (ROOT / folder).glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                found[f"{INSTALLED_AS[folder]}/{path.relative_to(ROOT / folder)}"] = path
    return found


def test_only_the_name_mixopt_reaches_the_environment(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mixopt"}


@pytest.mark.parametrize(
    ("pattern", "folders"),
    [
        ("*.py", ()),
        ("py.typed", ()),
        ("corpus/**/*", ("experiments",)),
        ("studies/*.yaml", ("experiments",)),
        ("templates/*", ("experiments",)),
    ],
)
def test_every_file_is_in_the_wheel_unchanged(wheel, pattern, folders):
    files = wanted(pattern, *folders)
    assert files
    assert sorted(set(files) - set(wheel)) == []
    assert [name for name, path in files.items() if wheel[name] != path.read_bytes()] == []


def test_all_four_folders_are_typed(wheel):
    assert {f"{place}/py.typed" for place in INSTALLED_AS.values()} <= set(wheel)


def test_no_tests_and_no_notes_of_the_repository_are_installed(wheel):
    assert [name for name in wheel if "/tests/" in name or name.startswith("tests/")] == []


def test_the_licenses_travel_along(wheel):
    notices = [name for name in wheel if ".dist-info/" in name and name.endswith(("LICENSE", "NOTICE.txt"))]
    assert len(notices) == 2


def test_the_command_is_installed(wheel):
    entry = next(content for name, content in wheel.items() if name.endswith("entry_points.txt"))
    assert b"mixopt = mixopt.experiments.cli:main" in entry
