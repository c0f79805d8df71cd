"""Simple regret of the search on synthetic problems, beside its predictor alone, random and Sobol.

    python tests/bench/regret.py 0.3        # error of the predictor, in scales of a column

Eight problems (6 domains, 3 columns, seed noise 0.02), 4 top-rung runs each, every run
charged. `bound` is the 95% regret bound that the search states for its recommendation.
"""

import sys

from mixopt import Constraints, Ladder, Objective
from mixopt.observation import History
from mixopt.search.baselines import RandomOptimizer, SobolOptimizer
from mixopt.search.bayes import MultiFidelityOptimizer
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, simulate

LADDER = Ladder.from_flops([("low", "m", 1, 1, 0.25), ("mid", "m", 1, 2, 0.5), ("top", "m", 1, 4, 1.0)], 0.05)
BUDGET, BATCH, NUM_PROBLEMS = 4.0, 4, 8


def main(error: float) -> None:
    print(f"{'seed':>4} {'predictor':>10} {'mfbo':>8} {'bound':>8} {'random':>8} {'sobol':>8}")
    for seed in range(NUM_PROBLEMS):
        problem = SyntheticProblem.random(6, 3, seed, noise=0.02)
        constraints = Constraints.simplex(problem.domains)
        objective = Objective.parse("mean(loss/*)", [f"loss/{name}" for name in problem.eval_sets])
        best = problem.optimum(objective, constraints)[1]
        predictor = SyntheticPredictor(problem, error=error, seed=seed)
        common = {"constraints": constraints, "ladder": LADDER, "objective": objective, "seed": seed}
        mfbo = MultiFidelityOptimizer(**common, predictor=predictor, initial=5)

        def regret(recommendation, problem=problem, objective=objective, best=best):
            return float(problem.objective_value(objective, recommendation.mixture.weights[None])[0] - best)

        found = {}
        for optimizer in (mfbo, RandomOptimizer(**common), SobolOptimizer(**common)):
            evaluator = SyntheticEvaluator(problem, LADDER)
            found[optimizer.name] = optimizer.recommend(
                simulate(optimizer, evaluator, budget=BUDGET, batch=BATCH, seed=seed)
            )
        numbers = [
            regret(mfbo.recommend(History())), regret(found["mfbo"]), found["mfbo"].regret_bound,
            regret(found["random"]), regret(found["sobol"]),
        ]  # fmt: skip
        print(f"{seed:>4} {numbers[0]:>10.4f} " + " ".join(f"{value:>8.4f}" for value in numbers[1:]), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.3)
