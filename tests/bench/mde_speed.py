"""How fast the ensemble predicts, against the plain products and logarithms that it needs; and how much memory it takes.

    python tests/bench/mde_speed.py [--mixtures 10000] [--experts 8] [--tokens 100000] [--repeats 5]
    python tests/bench/mde_speed.py --large [--tokens 10000000] [--experts 64]
    python tests/bench/mde_speed.py --gaps [--seeds 6]

Prints markdown tables. The bound is a blocked single-precision matrix product into a
buffer that stays in the cache, and a logarithm of every element in place, with the faster
of numpy's and torch's logarithm and, on a first try, the fastest of four block sizes; its
sums are not even taken. One thread, process CPU time, cases interleaved, medians. `--large` writes the
scores of K experts (2.6 GB for 64 and 10 million tokens) into a temporary folder, opens
and checks it, and predicts out of core. `--gaps` compares the certified gaps of
the optimizer with those of SLSQP, which it replaced.
"""

import os

if __name__ != "__mp_main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mixopt import Constraints, Group, Mixture, Objective, convex
from mixopt.constraints import FEASIBILITY_TOLERANCE
from mixopt.convex import KLPenalty, Reduction
from mixopt.mde import MDE, minimize
from mixopt.passages import Passages, save_passages
from mixopt.scores import ExpertScores, ScoreCard, save_scores
from mixopt.scores_folder import load_scores

BOUND_TILES = ((256, 512), (512, 256), (512, 512), (1024, 256))


def logprobs(num_experts, num_tokens, seed=0):
    """(K, T) of experts that are each good at their own share of the tokens."""
    rng = np.random.default_rng(seed)
    own = rng.integers(0, num_experts, num_tokens)
    common = -rng.exponential(2.0, num_tokens)
    array = np.empty((num_experts, num_tokens), dtype=np.float32)
    for k in range(num_experts):
        array[k] = np.minimum(common + rng.normal(-0.5, 0.7, num_tokens) + 0.8 * (own == k), -1e-4)
    return array


def names_of(num_experts):
    return tuple(f"d{k}" for k in range(num_experts))


def ensemble(array):
    names = names_of(len(array))
    return MDE(names, [ExpertScores(Passages.of_text("x", array.shape[1]), names, tuple(array))])


def plain(weights, probs, tile, log):
    """The bound: products and logarithms, tile by tile."""
    num, width = tile
    buffer = np.empty(num * width, dtype=np.float32)
    for start in range(0, probs.shape[1], width):
        part = np.ascontiguousarray(probs[:, start : start + width])
        for first in range(0, len(weights), num):
            rows = weights[first : first + num]
            mixed = buffer[: len(rows) * part.shape[1]].reshape(len(rows), -1)
            np.matmul(rows, part, out=mixed)
            if log == "numpy":
                np.log(mixed, out=mixed)
            else:
                as_tensor = torch.from_numpy(mixed)
                torch.log(as_tensor, out=as_tensor)


def seconds(function):
    """CPU seconds of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def status(field):
    """A line of the process's memory figures, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def speed(options):
    """Print times and ratios of one size."""
    array = logprobs(options.experts, options.tokens)
    probs = np.exp(array - array.max(axis=0))
    weights = np.random.default_rng(1).dirichlet(np.ones(options.experts), options.mixtures)
    single = weights.astype(np.float32)
    mde = ensemble(array)
    before = status("VmHWM")
    mde.predict(weights)
    peak = status("VmHWM")
    cases = {}
    for log in ("numpy", "torch"):
        tries = {
            tile: seconds(lambda t=tile, log=log: plain(single[:2048], probs[:, :16_384], t, log))
            for tile in BOUND_TILES
        }
        m, t = min(tries, key=tries.get)
        cases[f"product and logarithm, {log}, {m} x {t}"] = lambda log=log, m=m, t=t: plain(single, probs, (m, t), log)
    cases["ours: losses"] = lambda: mde.predict(weights)
    cases["ours: losses, scores read anew"] = lambda: ensemble(array).predict(weights)
    cases["ours: gradients"] = lambda: mde.gradient(weights)
    times = {name: [] for name in cases}
    for _ in range(options.repeats):
        for name, function in cases.items():
            times[name].append(seconds(function))
    medians = {name: statistics.median(values) for name, values in times.items()}
    bound = min(value for name, value in medians.items() if not name.startswith("ours"))
    size = options.mixtures * options.tokens
    print(
        f"{options.mixtures} mixtures x {options.experts} experts x {options.tokens} tokens, {options.repeats} repeats\n"
    )
    print("| case | CPU seconds | ns per mixture and token | of the bound's speed |\n|---|---:|---:|---:|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {value / size * 1e9:.2f} | {bound / value:.2f} |")
    print(
        f"\npeak resident memory {peak:.0f} MB, of which {before:.0f} MB before the prediction (numpy, torch, scores)"
    )


def large(options):
    """Print times and memory of an ensemble on disk."""
    names = names_of(options.experts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        offsets = np.unique(np.append(np.arange(0, options.tokens, 1000), options.tokens))
        save_passages(folder, Passages("x", offsets, "text"))
        for k, domain in enumerate(names):
            rng = np.random.default_rng(k)
            row = -rng.exponential(2.0, options.tokens).astype(np.float32)
            save_scores(folder, domain, row, ScoreCard(domain, domain, "top", k, domain, "tokenizer", "x", "text"))
        del row
        weights = np.random.default_rng(0).dirichlet(np.ones(options.experts), 100)
        print(f"{options.experts} experts x {options.tokens} tokens on disk\n")
        print("| step | CPU seconds | resident memory, MB | peak, MB |\n|---|---:|---:|---:|")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        found = []
        steps = {
            "open and check": lambda: found.append(MDE(names, load_scores(folder, names))),
            "100 losses": lambda: found[0].predict(weights),
            "1 gradient": lambda: found[0].gradient(weights[:1]),
            "1 Hessian": lambda: found[0].hessian(weights[0], "loss/x"),
        }
        for step, function in steps.items():
            spent = seconds(function)
            print(f"| {step} | {spent:.1f} | {status('VmRSS'):.0f} | {status('VmHWM'):.0f} |", flush=True)


def problem(num_experts, limited, seed):
    """Three sets, and a polytope."""
    names, rng = names_of(num_experts), np.random.default_rng(seed)
    sets = [
        ExpertScores(Passages.of_text(f"s{j}", 4000), names, tuple(logprobs(num_experts, 4000, seed=100 * seed + j)))
        for j in range(3)
    ]
    constraints = Constraints.simplex(names)
    if limited:
        low = np.where(rng.random(num_experts) < 0.3, 0.2 / num_experts, 0)
        high = np.minimum(rng.uniform(1.2, 4, num_experts) / num_experts, 1)
        constraints = Constraints(names, low, high, (Group(names[: num_experts // 2], 0.3, 0.6),))
    mde = MDE(names, sets)
    mde.predict(np.eye(num_experts))
    return mde, constraints, Objective.parse("mean(loss/*)", mde.columns)


def slsqp(mde, objective, constraints, kl):
    """What the optimizer did before: SLSQP, and the gap where it ends."""
    penalty = KLPenalty(np.full(len(mde.domains), 1 / len(mde.domains)), kl)

    def columns(weights):
        row = np.maximum(weights, 0)[None]
        return mde.predict(row, objective.columns)[0], mde.gradient(row, objective.columns)[0]

    start = constraints.interior_point()[None]
    weights = convex.minimize(columns, Reduction.of(objective), constraints=constraints, starts=start, penalty=penalty)
    return convex.gap(objective.weights @ columns(weights)[1] + penalty.gradient(weights), weights, constraints)


def gaps(options):
    """Print certified gaps and times of both optimizers on random problems."""
    print("| domains | constraints | KL | gap, ours, largest | SLSQP, largest | CPU seconds, ours | SLSQP |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for num in (4, 8, 17, 64):
        for limited in (False, True):
            for kl in (0.0, 0.1):
                rows = []
                for seed in range(options.seeds):
                    mde, constraints, objective = problem(num, limited, seed)
                    start = time.process_time()
                    best = minimize(mde, objective, constraints, reference=Mixture.uniform(mde.domains), kl=kl)
                    middle = time.process_time()
                    rival = slsqp(mde, objective, constraints, kl)
                    end = time.process_time()
                    assert constraints.violation(best.mixture.weights) <= FEASIBILITY_TOLERANCE
                    rows.append((best.gap, rival, middle - start, end - middle))
                worst, times = np.max(rows, axis=0), np.median(rows, axis=0)
                kind = "bounds and a group" if limited else "none"
                print(
                    f"| {num} | {kind} | {kl} | {worst[0]:.1e} | {worst[1]:.1e} | {times[2]:.3f} | {times[3]:.3f} |",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", type=int, default=10_000)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--gaps", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.experts = options.experts or (64 if options.large else 8)
    options.tokens = options.tokens or (10_000_000 if options.large else 100_000)
    (gaps if options.gaps else large if options.large else speed)(options)


if __name__ == "__main__":
    main()
