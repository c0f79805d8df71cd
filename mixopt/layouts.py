"""Files of RegMix and olmix, read as runs tables and written from them.

RegMix: pairs `<split>_mixture_<size>.csv` and `<split>_..._loss_<size>.csv`, joined by
`index` (Liu et al., arXiv:2407.01492, its repository's data folder). olmix: `ratios.csv`
and `metrics.csv`, joined by `run` or `run_id` (its README, "Input format"). Both hold
less than a runs table; writers say what they left out. No column is renamed beyond the
prefixes given here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from .errors import ConfigError
from .mixture import Array, check_name
from .runs import DEFAULT_FIDELITY, normalized, stacked
from .runs_table import RunsTable, concat
from .sheet import Cell, Sheet, listed, located, read_sheet, write_sheet

LAYOUTS = ("regmix", "olmix")

_MIXTURE_FILE = re.compile(r"(?P<split>.+)_mixture_(?P<size>.+)\.csv")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmb])", re.IGNORECASE)
_MILLIONS = {"k": 1e-3, "m": 1.0, "b": 1e3}
_RUN = re.compile(r"(?P<split>.+)-(?P<index>\d+)@(?P<rung>.+)")
_ROW_NUMBERS = re.compile(r"Unnamed: \d+|__index_level_\d+__")  # what pandas calls its own
_OLMIX_ID = ("run", "run_id")
_OLMIX_KEYS = (*_OLMIX_ID, "name", "index")


@dataclass(frozen=True)
class Written:
    """What a writer did.

    Attributes:
        files: The files, in the order written.
        notes: What the layout has no place for, in words.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]


# --- RegMix ------------------------------------------------------------------


def read_regmix(directory: Path, costs: Mapping[str, float] | None = None) -> RunsTable:
    """Read all file pairs of a folder as one table; runs are `<split>-<index>@<size>`.

    Args:
        directory: The data folder of RegMix, or one like it.
        costs: {size: cost of a run}; default the size in millions, so 1 for `1m` and 60 for `60m`.

    Raises:
        ConfigError: If a pair is incomplete, its ids differ, or a file is wrong.
    """
    pairs = [match for path in sorted(_folder(directory).iterdir()) if (match := _MIXTURE_FILE.fullmatch(path.name))]
    if not pairs:
        raise ConfigError(
            f"{directory}: expected files <split>_mixture_<size>.csv of RegMix, there are none; correct the path"
        )
    sizes = {match["size"] for match in pairs}
    unused = sorted(set(costs or {}) - sizes)
    if unused:
        raise ConfigError(
            f"{directory}: there is no size {listed(unused)} to have a cost, only {listed(sorted(sizes))}; drop it"
        )
    price = {size: costs[size] if costs and size in costs else regmix_cost(size) for size in sizes}
    pairs.sort(key=lambda match: (price[match["size"]], match["split"] != "train", match["split"]))
    return concat(
        [
            read_regmix_pair(directory / match[0], _loss_file(directory, match), cost=price[match["size"]])
            for match in pairs
        ]
    )


def regmix_cost(size: str) -> float:
    """Return the default cost of a run, its size in millions of parameters: `60m` is 60, `1B` is 1000.

    Raises:
        ConfigError: If the name is no such size.
    """
    match = _SIZE.fullmatch(size)
    if not match or not float(match[1]):
        raise ConfigError(
            f"expected a size such as 1m or 60m, got {size!r}; say what a run costs (--cost {size}=NUMBER)"
        )
    return float(match[1]) * _MILLIONS[match[2].lower()]


def read_regmix_pair(mixtures: Path, losses: Path, *, cost: float) -> RunsTable:
    """Read one pair; split and size are in the name of the mixture file.

    Args:
        mixtures: `<split>_mixture_<size>.csv` with `index` and `train_the_pile_<domain>`.
        losses: The losses with `index` and `metric/the_pile_<name>_val_loss`.
        cost: What one of its runs costs.

    Raises:
        ConfigError: If an id is in one file only, or a column is wrong.
    """
    match = _MIXTURE_FILE.fullmatch(mixtures.name)
    if not match:
        raise ConfigError(f"{mixtures}: expected a name <split>_mixture_<size>.csv, got another; rename the file")
    left, right = read_sheet(mixtures), read_sheet(losses)
    ids, order = _joined((mixtures, left), (losses, right), keys=("index",))
    shares = _renamed(mixtures, _data(left, ("index",)), _domain_name)
    found = _renamed(losses, _data(right, ("index",)), _loss_name)
    split, size = match["split"], match["size"]
    runs = tuple(f"{split}-{index}@{size}" for index in ids)
    with located(losses):
        columns = {name: right.numbers(header)[order] for name, header in found.items()}
    with located(mixtures):
        weights, notes = normalized(tuple(shares), runs, stacked(left, list(shares.values())))
        price = np.full(len(runs), cost)
        return RunsTable(
            tuple(shares),
            runs,
            (size,) * len(runs),
            weights,
            columns,
            price,
            notes=tuple(f"{mixtures.name}: {n}" for n in notes),
        )


def write_regmix(table: RunsTable, directory: Path) -> Written:
    """Write one file pair per split and rung; runs called `<split>-<index>@<rung>` keep their places.

    Raises:
        ConfigError: If the table has no loss.
        MixtureError: If a split or rung is no file name.
    """
    if not any(name.startswith("loss/") for name in table.columns):
        raise ConfigError("RegMix files hold losses, the table has none; add a loss/ column")
    places, notes = _places(table)
    groups: dict[tuple[str, str], list[int]] = {}
    for row, (split, _) in enumerate(places):
        groups.setdefault((check_name(split, "split"), check_name(table.fidelities[row], "fidelity")), []).append(row)
    files: list[Path] = []
    for (split, rung), rows in groups.items():
        index = {"index": [places[row][1] for row in rows]}
        weights, losses = _pair(table.select(rows))
        files += [directory / f"{split}_mixture_{rung}.csv", directory / f"{split}_pile_loss_{rung}.csv"]
        write_sheet(files[-2], {**index, **weights})
        write_sheet(files[-1], {**index, **losses})
    rungs = zip(table.fidelities, table.costs, strict=True)
    usual = all(_SIZE.fullmatch(rung) and regmix_cost(rung) == cost for rung, cost in rungs)
    return Written(tuple(files), (*notes, *_left_out(table, costs=not usual, scores=True)))


def _pair(table: RunsTable) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the columns of a mixture file and of its loss file, under RegMix' names."""
    weights = {f"train_the_pile_{name}": column for name, column in zip(table.domains, table.weights.T, strict=True)}
    names = [name.removeprefix("loss/") for name in table.columns if name.startswith("loss/")]
    return weights, {f"metric/the_pile_{name}_val_loss": table.columns[f"loss/{name}"] for name in names}


def _renamed(path: Path, headers: Sequence[str], rename: Callable[[str], str]) -> dict[str, str]:
    """Return {name: header}."""
    names = {rename(header): header for header in headers}
    lost = sorted(set(headers) - set(names.values()))
    if lost:
        raise ConfigError(f"{path}: {listed(lost)} means the same as another column without its prefix; rename one")
    return names


def _domain_name(header: str) -> str:
    return header.removeprefix("train_").removeprefix("the_pile_")


def _loss_file(directory: Path, pair: re.Match[str]) -> Path:
    """Return the loss file of a mixture file; what stands between split and `loss` is free (`pile` in RegMix)."""
    pattern = re.compile(rf"{re.escape(pair['split'])}(_.+)?_loss_{re.escape(pair['size'])}\.csv")
    found = sorted(path.name for path in directory.iterdir() if pattern.fullmatch(path.name))
    if len(found) != 1:
        raise ConfigError(
            f"{directory / pair[0]}: expected one file {pair['split']}_pile_loss_{pair['size']}.csv with its losses, "
            f"got {listed(found) or 'none'}; put it beside the mixtures"
        )
    return directory / found[0]


def _loss_name(header: str) -> str:
    return "loss/" + header.removeprefix("metric/").removeprefix("the_pile_").removesuffix("_val_loss")


def _places(table: RunsTable) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Return (split, index) of every run, from its id if all ids say so; else all are `train`, counted per rung."""
    matches = [_RUN.fullmatch(run) for run in table.runs]
    named = [
        (m["split"], m["index"]) for m, rung in zip(matches, table.fidelities, strict=True) if m and m["rung"] == rung
    ]
    if len(named) == len(table):
        return named, ()
    earlier: Counter[str] = Counter()
    places = []
    for rung in table.fidelities:
        earlier[rung] += 1
        places.append(("train", str(earlier[rung])))
    return places, (
        "runs are not all called <split>-<index>@<rung>, so they were numbered anew: train-1, train-2, ...",
    )


# --- olmix -------------------------------------------------------------------


def read_olmix(
    directory: Path, *, fidelity: str = DEFAULT_FIDELITY, cost: float = 1.0, scores: Sequence[str] = ()
) -> RunsTable:
    """Read `ratios.csv` and `metrics.csv` of one swarm; every metric is a loss unless said otherwise.

    Args:
        directory: The folder with both files.
        fidelity: Name of the rung of all runs; the files do not say it.
        cost: What one of its runs costs.
        scores: Names or patterns of metrics that are better when higher; they become `score/<name>`.

    Raises:
        ConfigError: If an id is in one file only, a column is wrong, or a pattern fits no metric.
    """
    ratios, metrics = (_folder(directory) / name for name in ("ratios.csv", "metrics.csv"))
    left, right = read_sheet(ratios), read_sheet(metrics)
    runs, order = _joined((ratios, left), (metrics, right), keys=_OLMIX_ID)
    domains, names = _data(left, _OLMIX_KEYS), _data(right, _OLMIX_KEYS)
    lost = [pattern for pattern in scores if not any(fnmatchcase(name, pattern) for name in names)]
    if lost or not names:
        raise ConfigError(
            f"{metrics}: no metric is called {listed(lost) or 'anything'}; the file has {listed(names) or 'none'}"
        )
    kinds = {name: "score/" if any(fnmatchcase(name, pattern) for pattern in scores) else "loss/" for name in names}
    with located(metrics):
        columns = {kind + name: right.numbers(name)[order] for name, kind in kinds.items()}
    with located(ratios):
        weights, notes = normalized(domains, runs, stacked(left, domains))
        num = len(runs)
        return RunsTable(domains, runs, (fidelity,) * num, weights, columns, np.full(num, cost), notes=notes)


def write_olmix(table: RunsTable, directory: Path) -> Written:
    """Write the runs of one rung as `ratios.csv` and `metrics.csv`.

    Raises:
        ConfigError: If the table has several rungs, or names that the layout cannot hold.
    """
    rungs = list(dict.fromkeys(table.fidelities))
    if len(rungs) > 1:
        raise ConfigError(
            f"olmix files hold one rung, the table has {listed(rungs)}; keep one (--fidelity {rungs[-1]})"
        )
    metrics = {name.partition("/")[2]: values for name, values in table.columns.items()}
    wrong = [name for name in (*table.domains, *metrics) if name in _OLMIX_KEYS or _ROW_NUMBERS.fullmatch(name)]
    if wrong or len(metrics) < len(table.columns):
        twice = [n for n in metrics if f"loss/{n}" in table.columns and f"score/{n}" in table.columns]
        raise ConfigError(
            f"olmix files cannot hold columns called {listed([*wrong, *twice])}, or a name twice; rename them"
        )
    keys: dict[str, Sequence[Cell]] = {"run": table.runs, "name": table.runs, "index": tuple(range(len(table)))}
    shares = dict(zip(table.domains, table.weights.T, strict=True))
    files = directory / "ratios.csv", directory / "metrics.csv"
    for path, columns in zip(files, (shares, metrics), strict=True):
        write_sheet(path, {**keys, **columns})
    scores = [name.removeprefix("score/") for name in table.columns if name.startswith("score/")]
    higher = (f"olmix minimizes every metric, but higher is better in {', '.join(scores)}",) if scores else ()
    left_out = _left_out(table, costs=bool(np.any(table.costs != 1)), scores=False)
    rung = (f"the rung {rungs[0]} is not in the files",) if rungs[0] != DEFAULT_FIDELITY else ()
    return Written(files, (*higher, *rung, *left_out))


# --- both --------------------------------------------------------------------


def _folder(directory: Path) -> Path:
    if not directory.is_dir():
        raise ConfigError(
            f"{directory}: expected a folder, there is {'a file' if directory.exists() else 'none'}; correct the path"
        )
    return directory


def _data(sheet: Sheet, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in sheet.columns if name not in keys and not _ROW_NUMBERS.fullmatch(name))


def _joined(
    first: tuple[Path, Sheet], second: tuple[Path, Sheet], *, keys: Sequence[str]
) -> tuple[tuple[str, ...], list[int]]:
    """Return the first file's ids, and for each the row it has in the second."""
    left, right = _ids(*first, keys), _ids(*second, keys)
    for (path, _), extra in (
        (first, [i for i in left if i not in set(right)]),
        (second, [i for i in right if i not in set(left)]),
    ):
        if extra:
            raise ConfigError(
                f"{path}: {keys[0]} {listed(extra)} {'is' if len(extra) == 1 else 'are'} in this file only; "
                "drop the rows, or add them to the other file (empty losses for a failed run)"
            )
    rows = {name: row for row, name in enumerate(right)}
    return left, [rows[name] for name in left]


def _ids(path: Path, sheet: Sheet, keys: Sequence[str]) -> tuple[str, ...]:
    key = next((name for name in keys if name in sheet.columns), None)
    if key is None:
        raise ConfigError(
            f"{path}: expected a column {' or '.join(keys)}, the file has {listed(sheet.columns)}; add it"
        )
    if not _data(sheet, (*keys, *_OLMIX_KEYS)):
        raise ConfigError(f"{path}: expected columns beside {key}, there are none; check what wrote the file")
    ids = sheet.texts(key)
    twice = [name or "an empty id" for name, count in Counter(ids).items() if count > 1 or not name]
    if twice:
        raise ConfigError(
            f"{path}: every {key} must be there once, twice or more is {listed(twice)}; rename or drop some"
        )
    return ids


def _left_out(table: RunsTable, *, costs: bool, scores: bool) -> tuple[str, ...]:
    """Say in words what a layout has no place for."""
    parts = {
        "cost": costs,
        "seed": any(seed is not None for seed in table.seeds),
        "parent": any(parent is not None for parent in table.parents),
        "params": table.params is not None,
        "tokens": table.tokens is not None,
        "noise": bool(table.noise),
        **{name: scores for name in table.columns if name.startswith("score/")},
    }
    lost = [name for name, there in parts.items() if there]
    return (f"left out, the layout has no place for it: {', '.join(lost)}",) if lost else ()
