"""The house's rules on imports, read from the sources (DESIGN section 2)."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("mixopt", "proxies", "search", "experiments")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NOT_AT_START = (
    "torch",
    "ray",
    "mlflow",
    "botorch",
    "gpytorch",
    "datasets",
    "matplotlib",
    "lightgbm",
    "fastapi",
    "uvicorn",
)

# What a folder may import of the others; itself it imports relatively.
MAY_IMPORT = {
    "mixopt": set(),
    "proxies": {"mixopt"},
    "search": {"mixopt"},
    "experiments": {"mixopt", "proxies", "search"},
}
# Which files may open the door to a framework.
DOORS = {
    "ray": lambda path: path in ("mixopt/cluster.py", "mixopt/ray_executor.py"),
    "mlflow": lambda path: path == "mixopt/tracking.py",
    "torch": lambda path: path.startswith(("proxies/", "search/")),
    "gpytorch": lambda path: path == "search/botorch_rivals.py",
    "botorch": lambda path: path.startswith("search/"),
    "datasets": lambda path: path.startswith("proxies/"),
    "tokenizers": lambda path: path.startswith("proxies/"),
    "safetensors": lambda path: path.startswith("proxies/"),
    "typer": lambda path: path.startswith("experiments/cli"),
    "rich": lambda path: path.startswith("experiments/cli"),
    "matplotlib": lambda path: False,
    "fsspec": lambda path: path == "mixopt/transfer.py",
    "fastapi": lambda path: path == "experiments/server.py",
    "uvicorn": lambda path: path == "experiments/cli_serve.py",
    "transformers": lambda path: False,
    "lightgbm": lambda path: path == "search/baselines.py",
    "sklearn": lambda path: path == "search/baselines.py",
    "pandas": lambda path: path in ("mixopt/study.py", "mixopt/proposal.py") or path.startswith("experiments/"),
    "pyarrow": lambda path: path in ("mixopt/sheet.py", "experiments/initialize.py"),
}
# Doors that stay closed until their class or function is used.
LATE = ("ray", "mlflow", "pandas", "scipy", "datasets", "matplotlib", "fsspec", "pyarrow")


@dataclass(frozen=True)
class Import:
    """One import statement's target, absolute or with leading dots."""

    module: str
    line: int
    at_top: bool

    @property
    def is_relative(self):
        return self.module.startswith(".")


@cache
def imports(path):
    """Every import of a file but those for type checkers alone."""
    found = []

    def visit(node, at_top):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append(Import("." * node.level + (node.module or ""), node.lineno, at_top))
            if node.module == "mixopt" and not node.level:
                found.extend(Import(f"mixopt.{alias.name}", node.lineno, at_top) for alias in node.names)
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_top and not inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def name(path):
    return str(path.relative_to(ROOT))


def folder_of(module):
    """The folder that an absolute import of ours reaches, or None."""
    parts = module.split(".")
    if parts[0] != "mixopt":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS[1:] else "mixopt"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_folders_import_only_what_lies_below_them(path):
    own = path.parent.name
    wrong = [i for i in imports(path) if (f := folder_of(i.module)) and f != own and f not in MAY_IMPORT[own]]
    assert wrong == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_inside_a_folder_imports_are_relative_and_across_folders_absolute(path):
    own = path.parent.name
    assert [
        i for i in imports(path) if folder_of(i.module) == own and not (own == "mixopt" and i.module == "mixopt")
    ] == []
    assert [i for i in imports(path) if i.module.startswith("..")] == []


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_the_folders_are_never_imported_bare(path):
    assert [i for i in imports(path) if i.module.split(".")[0] in ("proxies", "search", "experiments")] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_framework_has_its_door(path):
    used = {i.module.split(".")[0] for i in imports(path) if not i.is_relative}
    assert sorted(f for f in used if f in DOORS and not DOORS[f](name(path))) == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "mixopt"], ids=name)
def test_the_nouns_import_no_heavy_library_at_start(path):
    heavy = [i for i in imports(path) if i.at_top and i.module.split(".")[0] in LATE]
    assert heavy == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_source_imports_tests(path):
    assert [i for i in imports(path) if i.module.split(".")[0] in ("tests", "pytest", "hypothesis")] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_the_command_line_prints(path):
    if path.name.startswith("cli"):
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"] == []


def test_folders_stay_flat():
    nested = [p for f in FOLDERS for p in (ROOT / f).rglob("*.py") if p.parent != ROOT / f]
    # Notebooks are not installed.
    assert [name(p) for p in nested if p.parent.name != "notebooks"] == []


def loaded_after(code):
    """Which heavy libraries a fresh interpreter holds after some code."""
    tail = f"\nimport sys\nprint(*sorted(n for n in {NOT_AT_START!r} if n in sys.modules))"
    command = [sys.executable, "-c", code + tail]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()


def test_import_mixopt_loads_no_framework():
    assert loaded_after("import mixopt") == []


def test_the_help_of_the_command_line_loads_no_framework():
    code = (
        "import sys\nfrom mixopt.experiments import cli\nsys.argv = ['mixopt', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as error:\n    assert error.code in (0, None)"
    )
    assert loaded_after(code) == []
