"""Speed and memory of the proxies' trainer beside Hugging Face's mixture-of-experts models.

    python tests/bench/proxies.py                       # about ten minutes on a free machine
    python tests/bench/proxies.py --only stack memory --repeats 9 --json
    python tests/bench/proxies.py --quality runs/quickstart     # bits per byte at equal CPU time, over an hour

One thread, process CPU time, cases interleaved in turns of a few steps, medians; a step is
forward, backward, clip and fused AdamW (ours also averages its weights). Peers have the same
total parameters unless a row says otherwise. Needs `transformers`.
"""

from peers import VARIANTS, PeerTrainer, build  # isort: skip  # sets the allocator before torch is loaded

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

import torch

from mixopt.proxies.config import ProxyConfig
from mixopt.proxies.cost import total_params, training_flops
from mixopt.proxies.model import ProxyStack
from mixopt.proxies.optim import StackOptimizer, initial_state

SHAPES = {
    "0.2M": {"depth": 2},
    "1M": {"depth": 3},
    "4M": {"depth": 5, "experts": 16, "top_k": 4, "expert_width": 64, "shared_width": 128},
}
GOALS = {"stack": (2.0, 1.5), "single": (1.15, 1.0), "peak": (0.6, 0.5), "workers": (0.95, 0.95), "memory": (300, 300)}
PEER_BATCHES = (8, 16, 32)
TURN = 3  # steps


def shape(name, batch):
    return ProxyConfig(1024, **SHAPES[name], batch_size=batch)


def batch_of(config, *leading):
    size = (*leading, config.batch_size, config.sequence_length + 1)
    return torch.randint(config.vocab_size, size, generator=torch.Generator().manual_seed(0))


def our_step(config, num_models):
    """A training step of a stack, and its tokens."""
    model, average = (ProxyStack(config, num_models) for _ in range(2))
    states = [initial_state(config, s) for s in range(num_models)]
    optimizer = StackOptimizer(model, average.requires_grad_(False), states, ends=[10**9] * num_models)
    tokens = batch_of(config, num_models)

    def step():
        (model.mean_losses(tokens[..., :-1], tokens[..., 1:]) + model.router_penalty()).sum().backward()
        optimizer.step()

    return step, num_models * config.tokens_per_step


def peer_step(kind, kernel, config, fold="total"):
    trainer, tokens = PeerTrainer(build(kind, kernel, config, fold), config), batch_of(config)
    return lambda: trainer.step(tokens), config.tokens_per_step


def race(cases, repeats):
    """{name: (step, units)} -> {name: units per process CPU second}, medians over interleaved turns.

    The first step of a turn warms the caches again and is not counted, as in a run of its own.
    """
    seconds = {name: [] for name in cases}
    for _ in range(repeats):
        for name, (step, _) in cases.items():
            step()
            start = time.process_time()
            for _ in range(TURN):
                step()
            seconds[name].append((time.process_time() - start) / TURN)
    return {name: units / statistics.median(seconds[name]) for name, (_, units) in cases.items()}


def peers(name, batches, fold="total"):
    """{variant at batch: (step, tokens)}: every variant at the batches."""
    return {
        f"{kind} {kernel} at {batch}": peer_step(kind, kernel, shape(name, batch), fold)
        for batch in batches
        for kind, kernel in VARIANTS
    }


def fastest(cases, keep):
    """The few fastest of many cases, by a short race, so that the long one is not spent on the others."""
    speeds = race(cases, 3)
    return {name: cases[name] for name in sorted(cases, key=speeds.get)[-keep:]}


def stack(repeats):
    """Tokens per second of six models of 0.2M at 2 and 4 sequences each."""
    rows, best = [], fastest(peers("0.2M", PEER_BATCHES), keep=2)
    for batch in (2, 4):
        same = fastest(peers("0.2M", [batch]), keep=3)
        cases = {"ours": our_step(shape("0.2M", batch), 6), "alone": our_step(shape("0.2M", batch), 1), **same, **best}
        speeds = race(cases, repeats)
        ours, rival = speeds["ours"], max(same, key=speeds.get)
        other = max(best, key=speeds.get)
        note = f"{ours:,.0f} tokens/s; {rival} {speeds[rival]:,.0f}; {ours / speeds[other]:.2f} of {other}; "
        rows.append(row("stack", f"stack of 6, {batch} sequences each, 0.2M", ours / speeds[rival], note))
        rows[-1]["note"] += f"{ours / speeds['alone']:.2f} of our single model"
    return rows


def single(repeats):
    """Tokens per second of one model at batch 16, against peers of the same total and of the same active size."""
    rows = []
    for name in ("1M", "4M"):
        sides = {fold: fastest(peers(name, [16], fold), keep=2) for fold in ("total", "active")}
        cases = {f"{fold}: {rival}": case for fold, rivals in sides.items() for rival, case in rivals.items()}
        speeds = race({"ours": our_step(shape(name, 16), 1), **cases}, repeats)
        for fold in sides:
            rival = max((case for case in cases if case.startswith(fold)), key=speeds.get)
            note = f"{speeds['ours']:,.0f} tokens/s; {rival} {speeds[rival]:,.0f}"
            what = f"one model, {name}, batch 16, same {fold} parameters"
            rows.append(row("single", what, speeds["ours"] / speeds[rival], note))
    return rows


def peak(repeats):
    """Nominal FLOPs per CPU second at 4M, over those of square products of 1024."""
    config = shape("4M", 16)
    a, b, out = (torch.randn(1024, 1024) for _ in range(3))
    product = (lambda: [torch.mm(a, b, out=out) for _ in range(8)]), 8 * 2 * 1024**3
    step, tokens = our_step(config, 1)
    speeds = race({"ours": (step, training_flops(config, tokens)), "sgemm": product}, repeats)
    note = f"{speeds['ours'] / 1e9:.0f} of {speeds['sgemm'] / 1e9:.0f} GFLOP/s; {total_params(config) / 1e6:.1f}M parameters"
    return [row("peak", "share of the sgemm peak, 4M, batch 16", speeds["ours"] / speeds["sgemm"], note)]


def _resident(which):
    """Return MiB of this process: `VmRSS` now, `VmHWM` at the highest."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(which)) / 2**10


def memory_of_a_worker():
    """Print MiB beyond torch's own: resident in training, and at the highest."""
    before = float(os.environ["MIXOPT_BENCH_TORCH_MIB"])
    step, _ = our_step(ProxyConfig(1024), 3)
    for _ in range(20):
        step()
    print(json.dumps([_resident("VmRSS") - before, _resident("VmHWM") - before]))


def memory(repeats):
    """Resident memory of a worker at the quickstart's size, a stack of three, without what `import torch` takes."""
    values = []
    for _ in range(repeats):
        torch_alone = subprocess.run(
            [sys.executable, "-c", _TORCH_ALONE], check=True, capture_output=True, text=True
        ).stdout
        command = [sys.executable, __file__, "--memory-of-a-worker"]
        environment = {**os.environ, "MIXOPT_BENCH_TORCH_MIB": torch_alone}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        values.append(json.loads(out))
    now, highest = (statistics.median(v[i] for v in values) for i in (0, 1))
    return [row("memory", "worker beyond torch, MiB", highest, f"{now:.0f} MiB resident after 20 steps", smaller=True)]


_TORCH_ALONE = """
import torch
torch.set_num_threads(1)
torch.ones(9, 9) @ torch.ones(9, 9)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 2**10)
"""


def _work(num_steps):
    torch.set_num_threads(1)
    step, tokens = our_step(ProxyConfig(1024), 3)
    step()
    start = time.process_time()
    for _ in range(num_steps):
        step()
    return num_steps * tokens / (time.process_time() - start)


def workers(repeats, num_steps=60):
    """Tokens per CPU second of each of two processes, over one alone."""
    ratios, alone_speeds = [], []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for _ in range(repeats):
            alone = pool.apply(_work, [num_steps])
            ratios.append(statistics.mean(pool.map(_work, [num_steps] * 2, chunksize=1)) / alone)
            alone_speeds.append(alone)
    note = f"{statistics.median(alone_speeds):,.0f} tokens/s alone; stacks of 3 at the quickstart's size"
    return [row("workers", "two workers, each over one alone", statistics.median(ratios), note)]


def row(part, what, value, note, *, smaller=False):
    goal, floor = GOALS[part]
    met = [value <= limit if smaller else value >= limit for limit in (goal, floor)]
    verdict = "goal" if met[0] else "floor" if met[1] else "missed"
    return {"what": what, "value": round(value, 3), "goal": goal, "floor": floor, "met": verdict, "note": note}


def table(rows):
    lines = ["| what | measured | goal (floor) | met | |", "|---|---|---|---|---|"]
    for r in rows:
        lines.append(f"| {r['what']} | {r['value']:.2f} | {r['goal']} ({r['floor']}) | {r['met']} | {r['note']} |")
    return "\n".join(lines)


PARTS = {"stack": stack, "single": single, "peak": peak, "memory": memory, "workers": workers}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repeats, at least 5")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quality", metavar="STUDY", help="bits per byte at equal CPU time on a prepared study")
    parser.add_argument("--seconds", type=float, default=60.0, help="with --quality: CPU seconds per model")
    parser.add_argument("--seeds", type=int, default=6, help="with --quality")
    parser.add_argument("--out", default="runs/bench/proxies", help="with --quality: folder of results, for resuming")
    parser.add_argument("--memory-of-a-worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of_a_worker:
        memory_of_a_worker()
        return
    if arguments.quality:
        from proxies_quality import compare

        rows = compare(arguments.quality, out=arguments.out, seconds=arguments.seconds, seeds=arguments.seeds)
    else:
        rows = []
        for part in arguments.only:
            print(f"measuring {part}", file=sys.stderr, flush=True)
            rows += PARTS[part](max(5, arguments.repeats))
    print(json.dumps(rows) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
