"""What the surrogate's choices rest on: rank agreement and calibration on held-out published runs.

    python tests/bench/surrogate.py REGMIX_DIR [--sizes 16 32 64] [--subsets 4]

REGMIX_DIR is the data folder of the public repository sail-sg/regmix. Only the file of
1M training runs is used: random runs of its first half are learned from, its second half
is predicted. The test mixtures, on which docs/benchmarks.md reports, are not touched.
Printed per input map and number of runs: Spearman of the mean of 13 losses and mean
Spearman of the single ones, and the share of held-out runs inside 90% intervals (noise
included), for single losses and for their mean.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.layouts import read_regmix
from mixopt.search import encoding
from mixopt.search.encoding import Encoder, Evidence
from mixopt.search.pool import Pool
from mixopt.search.surrogate import Surrogate

RUNG, QUANTILE = "1m", 1.645
BOTH = encoding._input_map


def log_only(weights):
    """Log weights alone, twice, so that the number of inputs stays."""
    return BOTH(weights)[:, : weights.shape[-1]].repeat(1, 2)


def root_only(weights):
    """Square roots of the weights alone, twice."""
    return BOTH(weights)[:, weights.shape[-1] :].repeat(1, 2)


MAPS = {"log and root": BOTH, "log": log_only, "root": root_only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--subsets", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = read_regmix(options.directory)
    table = table.select(np.flatnonzero(np.char.startswith(np.array(table.runs), "train-")))
    print("| input map | runs | Spearman, mean | Spearman, single | inside 90%, single | inside 90%, mean |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, input_map in MAPS.items():
        encoding._input_map = input_map
        for size in options.sizes:
            found = np.mean([judged(table, size, seed) for seed in range(options.subsets)], axis=0)
            print(f"| {name} | {size} | " + " | ".join(f"{value:.3f}" for value in found) + " |", flush=True)


def judged(table, size, seed):
    """Return the four numbers of one random set of runs."""
    half = len(table) // 2
    chosen = seeding.generator(seed, "bench", "surrogate").permutation(half)[:size]
    tested, names = np.arange(half, len(table)), tuple(table.columns)
    pool = Pool(table.domains, table.weights, table.fidelities, np.ones(len(table)))
    encoder = Encoder.of(None, Constraints.simplex(table.domains), 0, pool)
    evidence = Evidence.of(table.history(chosen), table.ladder(RUNG), table.domains)
    surrogate = Surrogate(encoder, evidence, names)
    with torch.no_grad():
        encoded = encoder.encode(torch.tensor(table.weights[tested]))
        parts = [believed(surrogate.column(name), encoded) for name in names]
    means, stds = (np.stack([part[i] for part in parts], axis=1) for i in (0, 1))
    truth = np.stack([table.columns[name][tested] for name in names], axis=1)
    shared = np.sqrt(np.einsum("mj,jk,mk->m", stds, surrogate.correlation(names), stds)) / len(names)
    return (
        spearmanr(means.mean(1), truth.mean(1)).statistic,
        np.mean([spearmanr(m, t).statistic for m, t in zip(means.T, truth.T, strict=True)]),
        np.mean(np.abs(means - truth) < QUANTILE * stds),
        np.mean(np.abs(means.mean(1) - truth.mean(1)) < QUANTILE * shared),
    )


def believed(column, encoded):
    """Return means, and standard deviations of single runs, noise included."""
    rows = column.rows(encoded, column.target)
    noise = column.deviation**2 * column.posterior.kernel.noise(rows)
    return column.mean(rows).numpy(), np.sqrt(column.std(rows).numpy() ** 2 + noise.numpy())


if __name__ == "__main__":
    main()
