"""A runs table of our own proxies with losses and accuracies: the quickstart's corpus, models and rungs.

    python tests/bench/own_table.py tests/data/own_runs.csv [--cache runs/own_table] [--stacks 9]

Trains 32 mixtures of the eight built-in domains (half drawn uniformly from the simplex, half
dense) and 4 replicates on one thread, about 16 CPU minutes. Finished stacks are kept, so a
killed run goes on. At every rung it records, with the averaged weights, loss and top-1 accuracy
of the next token on the quickstart's evaluation sets, and the accuracy of choosing the sentence
whose words are in order. Ends with how well rungs agree and how much of the variance is noise.
It is no study: nothing is searched, and no trial informs another.

    K domains, T tokens of all options
"""

import argparse
import time
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from mixopt import Mixture
from mixopt.experiments import build
from mixopt.identity import fingerprint
from mixopt.proxies.cost import active_params
from mixopt.proxies.optim import initial_state
from mixopt.proxies.scoring import ScoringRows, score
from mixopt.proxies.tokenizer import TextTokenizer
from mixopt.proxies.tokens import MixtureSampler, TokenShard
from mixopt.proxies.train import ProxyRun, StackTrainer
from mixopt.runs import RunsTable, read_runs, write_runs
from mixopt.seeding import generator
from mixopt.storage import RunDirectory, read_json, write_json

STUDY = build.CORPUS.parent / "studies" / "quickstart.yaml"
SEED, PER_KIND, NUM_REPLICATES, STACK = 0, 16, 4, 4
MOST_OF_UNIFORM = 3.0  # a dense weight is within this factor of uniform
EVAL_TOKENS = 4096
OPTION_TOKENS, NUM_QUESTIONS = 64, 600  # longest option kept; questions, evenly spread
DIGITS = 6


@dataclass(frozen=True)
class Run:
    """One model to train.

    Attributes:
        name: Id of the trial.
        seed: Of its weights and data.
        mixture: What it is trained on.
    """

    name: str
    seed: int
    mixture: Mixture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="table to write, .csv or .parquet")
    parser.add_argument("--cache", type=Path, default=Path("runs/own_table"))
    parser.add_argument("--stacks", type=int, help="train only the first stacks, for a try")
    options = parser.parse_args()
    header, evaluator = build.prepare(location(options.cache), partial(print, flush=True))
    evaluator.limit_threads()
    bench = Bench(header, evaluator, RunDirectory(options.cache))
    runs = planned(header.domain_names)
    stacks = [runs[i : i + STACK] for i in range(0, len(runs), STACK)][: options.stacks]
    found = {}
    for number, stack in enumerate(stacks, 1):
        found |= bench.kept(stack)
        print(f"stack {number} of {len(stacks)} done", flush=True)
    write_runs(as_table(header, bench.config, [run for stack in stacks for run in stack], found), options.out)
    print(f"wrote {options.out}\n\n{summary(read_runs(options.out))}")


def location(directory: Path) -> build.Location:
    """Return the quickstart with larger evaluation sets, on the CPU with one thread."""
    study = build.locate(STUDY).config
    measured = study.evaluation.model_copy(update={"tokens": EVAL_TOKENS, "domain_tokens": EVAL_TOKENS})
    run = study.run.model_copy(update={"device": "cpu", "threads": 1})
    return build.Location(study.model_copy(update={"evaluation": measured, "run": run}), directory.resolve())


def planned(domains):
    """Return all runs: sparse and dense mixtures in turn, then replicates of the first ones with other seeds."""
    rng = generator(SEED, "own table")
    drawn = [(kind, i, draw(rng, len(domains))) for i in range(PER_KIND) for kind, draw in KINDS.items()]
    runs = [Run(f"{kind}-{i:02d}", n, Mixture(domains, rounded(w))) for n, (kind, i, w) in enumerate(drawn)]
    again = [Run(f"{run.name}-again", len(runs) + n, run.mixture) for n, run in enumerate(runs[:NUM_REPLICATES])]
    return [*runs, *again]


def sparse(rng, num):
    """Draw (K,) weights uniformly from the simplex."""
    return rng.dirichlet(np.ones(num))


def dense(rng, num):
    """Draw (K,) weights, log-uniform, all within a factor of uniform."""
    reach = np.log(MOST_OF_UNIFORM)
    while True:
        weights = np.exp(rng.uniform(-reach, reach, num))
        weights /= weights.sum()
        if np.abs(np.log(weights * num)).max() <= reach:
            return weights


KINDS = {"sparse": sparse, "dense": dense}


def rounded(weights):
    """Return weights of six decimals that sum to 1, so that a table shows exactly what was trained."""
    found = np.round(weights, DIGITS)
    found[np.argmax(found)] += 1 - found.sum()
    return np.round(found, DIGITS)


class Bench:
    """Trains stacks and measures their models at every rung.

    Args:
        header: Domains, evaluation sets and ladder.
        evaluator: Shapes and token shards.
        files: Where tokens lie and finished stacks are kept.
    """

    def __init__(self, header, evaluator, files):
        self.files, self.config = files, evaluator.models[header.ladder.target.model]
        self.steps = {self.config.num_steps(rung.num_tokens): rung.name for rung in header.ladder}
        self.shards = {name: TokenShard(files.tokens / folder) for name, folder in evaluator.shards.items()}
        self.texts = {name: on.rows for name, on in evaluator.measured(files, self.config).items()}
        self.questions = Questions(files)
        self.data = [evaluator.data, evaluator.tokenizer, self.questions.shard.meta["fingerprint"]]

    def kept(self, stack):
        """Return {trial: {rung: {column: value}}} of a stack, trained if it is not there."""
        what = [[run.name, run.seed, run.mixture.as_dict()] for run in stack]
        path = self.files.path / "stacks" / f"{fingerprint([what, self.steps, self.config.to_json(), self.data])}.json"
        found = read_json(path)
        if found is None:
            found = self.train(stack)
            write_json(path, found)
        return found

    def train(self, stack):
        """Train a stack; a model that diverges lacks its later rungs."""
        length, start = self.config.sequence_length, time.process_time()
        found = {run.name: {} for run in stack}
        runs = [
            ProxyRun(
                run.name,
                MixtureSampler(self.shards, run.mixture, seed=run.seed, sequence_length=length),
                tuple(self.steps),
                initial_state(self.config, run.seed),
            )
            for run in stack
        ]

        def record(milestone):
            rung = self.steps[milestone.step]
            found[milestone.run.name][rung] = self.measure(milestone.average)
            print(f"{milestone.run.name}@{rung} {time.process_time() - start:.0f} CPU s", flush=True)

        trainer = StackTrainer(self.config, runs, torch.device("cpu"))
        while trainer.active:
            trainer.advance(record)
        return found

    def measure(self, model):
        """Return {column: value} of a stack of one."""
        both = {name: on_text(model, rows) for name, rows in self.texts.items()}
        return {
            **{f"loss/{name}": loss for name, (loss, _) in both.items()},
            **{f"score/{name}": accuracy for name, (_, accuracy) in both.items()},
            "score/mc_order": self.questions.accuracy(model),
        }


@torch.no_grad()
def on_text(model, rows, *, batch=16):
    """Return loss (nats per token) and top-1 accuracy of the next token, one model on one evaluation set."""
    losses, hits = [], []
    for start in range(0, len(rows.inputs), batch):
        here = slice(start, start + batch)
        targets, mask = torch.from_numpy(rows.targets[here]).flatten(), torch.from_numpy(rows.mask[here]).flatten()
        logits = model(torch.from_numpy(rows.inputs[here]).unsqueeze(0))[0] @ model.embedding[0].T
        losses.append(F.cross_entropy(logits, targets, reduction="none")[mask].double())
        hits.append((logits.argmax(-1) == targets)[mask].double())
    return float(torch.cat(losses).mean()), float(torch.cat(hits).mean())


class Questions:
    """Sentences beside three copies with words moved; the right one is the likeliest per token.

    Args:
        files: Where the tokenizer lies and the options' tokens are kept.
    """

    def __init__(self, files):
        tokenizer = TextTokenizer(files.tokens / "tokenizer.json")
        items = pq.read_table(build.CORPUS / "targets" / "mc_order.parquet").to_pylist()
        fit = [i for i in items if max(len(e.ids) for e in tokenizer.encode(i["options"])) <= OPTION_TOKENS]
        chosen = [fit[n * len(fit) // NUM_QUESTIONS] for n in range(NUM_QUESTIONS)]
        options = [option for item in chosen for option in item["options"]]
        key = {"part": "options", "text": fingerprint(options)}
        self.shard = TokenShard.build(files.tokens, "eval-mc_order", options, tokenizer=tokenizer, key=key)
        self.rows = ScoringRows.cut(self.shard, OPTION_TOKENS)
        self.answers = np.array([item["answer"] for item in chosen])

    def accuracy(self, model):
        """Return the share of questions answered right; chance is 1/4."""
        chosen = likeliest(score(model, self.rows)[0], self.shard.offsets, len(self.answers))
        return float((chosen == self.answers).mean())


def likeliest(logprobs, offsets, num_questions):
    """Return (questions,) number of the option with the largest mean log-probability per token.

    Args:
        logprobs: (T,) of all options' tokens, back to back, nats.
        offsets: (options of all questions + 1,) where each starts; the last entry is T.
        num_questions: All have the same number of options.
    """
    sums = np.add.reduceat(logprobs.astype(np.float64), offsets[:-1])
    return (sums / np.diff(offsets)).reshape(num_questions, -1).argmax(1)


def as_table(header, config, runs, found):
    """Return the runs table, a row per trial and rung; what is missing is NaN."""
    rungs, least = list(header.ladder), header.ladder.rungs[0].num_tokens
    rows = [(run, rung) for run in runs for rung in rungs]
    values = [found[run.name].get(rung.name, {}) for run, rung in rows]
    columns = dict.fromkeys(name for cells in values for name in cells)
    return RunsTable(
        domains=header.domain_names,
        runs=tuple(f"{run.name}@{rung.name}" for run, rung in rows),
        fidelities=tuple(rung.name for _, rung in rows),
        weights=np.array([run.mixture.weights for run, _ in rows]),
        columns={
            name: np.array([float(f"{cells.get(name, np.nan):.{DIGITS}g}") for cells in values]) for name in columns
        },
        costs=np.array([rung.num_tokens / least for _, rung in rows]),
        seeds=tuple(run.seed for run, _ in rows),
        parents=(None,) * len(rows),
        params=np.full(len(rows), float(active_params(config))),
        tokens=np.array([float(rung.num_tokens) for _, rung in rows]),
    )


def summary(table):
    """Return, as a markdown table, rank correlations between rungs and the share of variance that is noise."""
    rungs = list(dict.fromkeys(table.fidelities))
    pairs = list(combinations(rungs, 2))
    head = ["column", *(f"ranks {a} to {b}" for a, b in pairs), *(f"noise {rung}" for rung in rungs)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for kind in ("loss/", "score/"):
        names = [name for name in table.columns if name.startswith(kind)]
        rows = [judged(table, at_rungs(table, [name]), pairs) for name in names]
        found = dict(zip(names, rows, strict=True))
        found |= {f"mean over {kind}": np.mean(rows, 0), f"mean({kind}*)": judged(table, at_rungs(table, names), pairs)}
        lines += [f"| {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |" for name, row in found.items()]
    return "\n".join(lines)


def judged(table, values, pairs):
    """Return Spearman correlations of pairs of rungs, then the share of noise at every rung."""
    ranks = [spearmanr(values[a], values[b]).statistic for a, b in pairs]
    return [*ranks, *(noise_share(table, v) for v in values.values())]


def at_rungs(table, names):
    """Return {rung: (trials,) mean of some columns}, trials in the table's order."""
    values, of = np.mean([table.columns[name] for name in names], axis=0), np.array(table.fidelities)
    return {rung: values[of == rung] for rung in dict.fromkeys(table.fidelities)}


def noise_share(table, values):
    """Return the variance between replicates over that between mixtures; values are one rung's, per trial."""
    names = [run.rpartition("@")[0] for run in table.runs if run.endswith("@" + table.fidelities[0])]
    pairs = [(names.index(name.removesuffix("-again")), i) for i, name in enumerate(names) if name.endswith("-again")]
    if not pairs:
        return np.nan
    noise = np.mean([(values[a] - values[b]) ** 2 / 2 for a, b in pairs])
    return noise / values[[i for i, name in enumerate(names) if not name.endswith("-again")]].var(ddof=1)


if __name__ == "__main__":
    main()
