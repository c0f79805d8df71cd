"""The service loop: experts, search, recommendation, validation runs.

    (train seeds ->) train experts -> MDE -> (propose -> train -> learn)* -> recommend -> validate

The loop holds no state of its own: it looks at the study, does what is missing and
appends. Started again after any interruption, it goes on where the ledger ends.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .errors import StudyError, TrainingError
from .execution import read_results
from .fidelity import Ladder
from .identity import fingerprint
from .mixture import Mixture
from .observation import History, Observation, Role, Status, Trial
from .proposal import Contender, Prediction, Proposal
from .protocols import Evaluator, Executor, Job, JobReport, NullWatch, Optimizer, Predictor, Tracker, TrialResult, Watch
from .seeding import derive
from .stopping import asked, check, safe_points
from .storage import read_json
from .study import Header, Study
from .trust import at_chance
from .warm_start import WarmStart

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
RECOMMENDED = "recommended"


@dataclass(frozen=True)
class Plan:
    """What a study file says, ready to run; made by the composition root.

    Attributes:
        header: What is searched.
        evaluator: Trains and scores.
        optimizer: Builds the optimizer from a predictor (None: search without one).
        predictor: Opens the MDE of the experts' scores; None when there are no experts.
        unscored: Finished experts that lack scores on some evaluation set.
        batch_size: Trials proposed at a time.
        synchronous: Whether a whole batch ends before the next is proposed; else one job more than there are
            workers is proposed at any time.
        baselines: {label: mixture} compared with the recommendation.
        validation_seeds: Runs per contender.
        stack: Most trials in one job.
        retries: Further attempts of a job after a lost worker.
    """

    header: Header
    evaluator: Evaluator
    optimizer: Callable[[Predictor | None], Optimizer]
    predictor: Callable[[Study], Predictor] | None
    unscored: Callable[[Study], Sequence[Trial]]
    batch_size: int
    baselines: Mapping[str, Mixture]
    validation_seeds: int
    stack: int
    retries: int
    synchronous: bool = True


def run_study(
    study: Study,
    plan: Plan,
    *,
    executor: Executor,
    tracker: Tracker,
    watch: Watch | None = None,
    accept_changes: bool = False,
    on_begin: Callable[[], None] = lambda: None,
) -> None:
    """Do all that is missing until the recommendation is validated.

    `on_begin` is called once the ledger has accepted the plan, before any work.

    Raises:
        StudyChangedError: If data changed under the ledger and that is not accepted.
        MixoptError: If the environment fails; what finished is kept.
        KeyboardInterrupt: If a stop was asked for (`stopping.py`); what finished is kept.
    """
    study.begin(plan.header, accept_changes=accept_changes)
    on_begin()
    with safe_points():
        _Service(study, plan, executor, tracker, watch or NullWatch()).run()


@dataclass
class _Service:
    study: Study
    plan: Plan
    executor: Executor
    tracker: Tracker
    watch: Watch

    def run(self) -> None:
        self._train_seeds()
        if self.plan.predictor is not None:
            self._train_experts()
        optimizer = self.plan.optimizer(open_predictor(self.study, self.plan))
        self._search(optimizer)
        self._recommend(optimizer)
        self._validate()
        self.tracker.project(self.study)

    # --- phases --------------------------------------------------------------

    def _train_seeds(self) -> None:
        """Train the models that experts and search runs are forked from, one per shape."""
        warm_start = self.study.header.warm_start
        if warm_start is None:
            return
        have = {trial.label for trial in self._current(Role.SEED)}
        missing = [model for model in warm_start.rungs if model not in have]
        self.watch.phase("seeds", f"one seed model per shape, {len(missing)} to train")
        self.study.propose([self._seed_model(model, warm_start) for model in missing])
        self._run_pending(Role.SEED)
        for trial in self._current(Role.SEED):
            if trial.status is not Status.DONE:
                raise TrainingError(
                    f"the seed model {trial.id} is {trial.status}: {trial.note}; all other runs start from it: "
                    "correct the cause, or drop warm_start to train them from scratch"
                )

    def _train_experts(self) -> None:
        header = self.study.header
        have = {trial.label for trial in self._current(Role.EXPERT) if trial.fidelity == header.experts_fidelity}
        missing = [name for name in header.domain_names if name not in have]
        self.watch.phase("experts", f"one data expert per domain, {len(missing)} to train")
        self.study.propose([self._expert(name) for name in missing])
        self._run_pending(Role.EXPERT)
        unscored = self.plan.unscored(self.study)
        if unscored:
            self.watch.phase("experts", f"score {len(unscored)} experts on new evaluation sets")
            jobs = [self._job([t], "score") for t in unscored]
            for job in jobs:  # an earlier result says that they were scored; what it left behind is gone
                self.study.files.result(job.fingerprint).unlink(missing_ok=True)
            self._run_jobs(jobs)
        self._require_results(self.study.history())
        noise = at_chance(self.study.history(), header.eval_sets, self.study.objective)
        if noise and not header.objective.get("allow_chance"):
            raise TrainingError(
                f"no data expert beats guessing at {', '.join(noise)}: a search would follow noise. Minimize the loss of "
                "the right options (loss/<task>) instead, use more questions or a longer ladder, or set "
                "objective.allow_chance"
            )

    def _search(self, optimizer: Optimizer) -> None:
        header = self.study.header
        self.watch.phase("search", f"{optimizer.name}, budget {header.budget:g} top-rung runs")
        if not self.plan.synchronous:
            self._run_jobs(self._pending(Role.SEARCH), more=lambda: self._next(optimizer, self._share(), wait=True))
            return
        jobs: Sequence[Job] = self._pending(Role.SEARCH)
        while jobs or self.study.stopped is None:
            self._run_jobs(jobs)
            jobs = self._next(optimizer, self.plan.batch_size)

    def _next(self, optimizer: Optimizer, num: int, *, wait: bool = False) -> list[Job]:
        """Propose up to `num` trials and return their jobs; none if the search has ended.

        Args:
            optimizer: Whom to ask.
            num: Most trials.
            wait: While others still run, an optimizer that wants nothing is asked again when they have ended.
        """
        if self.study.stopped is not None:
            return []
        header, history = self.study.header, self.study.history()
        left = header.budget - history.of(Role.SEARCH).spent(header.ladder)
        proposals = optimizer.propose(history, num, budget=left) if left > 0 else []
        if asked():  # what runs beside this may still end well: the caller stops
            return []
        if not proposals:
            if not (wait and history.of(Role.SEARCH).pending):
                self.study.stop(_stop_reason(left, header.ladder))
            return []
        self.study.propose(self._number(proposals))
        return self._jobs(self.study.batches[-1:], Role.SEARCH)

    def _recommend(self, optimizer: Optimizer) -> None:
        known = {contender.label: contender.mixture for contender in self.study.contenders}
        if self.study.recommendation is not None and known == {
            RECOMMENDED: self.study.recommendation.mixture,
            **self.plan.baselines,
        }:
            return
        self.watch.phase("recommend")
        history = self.study.history()
        self._require_results(history)
        recommendation = optimizer.recommend(history)
        rivals = {RECOMMENDED: recommendation.mixture, **self.plan.baselines}
        target = self.study.header.ladder.target.name
        prediction = optimizer.predict(history, list(rivals.values()), fidelity=target)
        check()
        contenders = [_contender(label, mixture, prediction, i) for i, (label, mixture) in enumerate(rivals.items())]
        self.study.recommend(recommendation, contenders)
        self.tracker.project(self.study)

    def _require_results(self, history: History) -> None:
        """Refuse to go on where every run was lost: nothing was learned, and the next ones would be lost too."""
        lost = [trial for trial in history.trials if trial.note]
        if lost and not history.observations:
            raise TrainingError(
                f"no run gave a result, so there is nothing to recommend from; {lost[0].id} is {lost[0].status}: "
                f"{lost[0].note}; correct the cause (such as proxy.learning_rate) and start again with another --dir"
            )

    def _validate(self) -> None:
        missing = missing_validation(self.study, self.plan)
        num_seeds = self.plan.validation_seeds
        self.watch.phase("validation", f"{len(self.study.contenders)} mixtures x {num_seeds} fresh seeds")
        target = self.study.header.ladder.target.name
        trials = [
            Trial(
                self._new_id(f"valid-{c.label}-{r + 1}"), Role.VALIDATION, c.mixture, target, seed,
                proposed_by="validation", reason=f"measure {c.label} on seed {r + 1}", label=c.label,
            )
            for c, r, seed in missing
        ]  # fmt: skip
        # One batch per seed: contenders of one seed share a stack, so they compare like with like.
        for r in range(num_seeds):
            self.study.propose([t for t, item in zip(trials, missing, strict=True) if item[1] == r])
        self._run_pending(Role.VALIDATION)

    # --- trials --------------------------------------------------------------

    def _current(self, role: Role) -> list[Trial]:
        return [trial for trial in self.study.history(seeds=True).trials if trial.role is role]

    def _new_id(self, wanted: str) -> str:
        taken = {trial.id for trial in self.study.trials}
        candidates = (wanted if i == 1 else f"{wanted}.{i}" for i in range(1, len(taken) + 2))
        return next(name for name in candidates if name not in taken)

    def _seed_model(self, model: str, warm_start: WarmStart) -> Trial:
        header = self.study.header
        uniform, natural = Mixture.uniform(header.domain_names), Mixture.natural(header.domains)
        return Trial(
            self._new_id(f"seed-{model}"), Role.SEED, uniform if warm_start.mixture == "uniform" else natural,
            warm_start.rungs[model], derive(header.seed, "seed model", model), proposed_by="warm_start",
            reason=f"seed model on the {warm_start.mixture} mixture", label=model,
        )  # fmt: skip

    def _seed_of(self, fidelity: str) -> str | None:
        """Return the seed model that a fresh expert or search run is forked from, if there is one."""
        model = self.study.header.ladder[fidelity].model
        return next((trial.id for trial in self._current(Role.SEED) if trial.label == model), None)

    def _expert(self, domain: str) -> Trial:
        header = self.study.header
        trial_id, parent = self._new_id(f"expert-{domain}"), self._seed_of(header.experts_fidelity)
        return Trial(
            trial_id, Role.EXPERT, Mixture.vertex(header.domain_names, domain), header.experts_fidelity,
            derive(header.seed, "expert", domain), proposed_by="expert", reason=f"data expert of {domain}", label=domain,
            parent=parent, parent_kind="forked" if parent else None,
        )  # fmt: skip

    def _number(self, proposals: Sequence[Proposal]) -> list[Trial]:
        first = sum(trial.role is Role.SEARCH for trial in self.study.trials)
        trials = []
        for i, proposal in enumerate(proposals, start=first):
            trial_id = f"search-{i:03d}"
            # A continuation is the same run, further: same data stream, same seed.
            seed = (
                self.study.trial(proposal.parent).seed if proposal.parent else derive(self.study.header.seed, trial_id)
            )
            parent = proposal.parent or self._seed_of(proposal.fidelity)
            kind = "continued" if proposal.parent else "forked"
            trials.append(
                Trial(
                    trial_id, Role.SEARCH, proposal.mixture, proposal.fidelity, seed, proposal.proposed_by,
                    reason=proposal.reason, value=proposal.value, parent=parent,
                    parent_kind=kind if parent else None, parent_fidelity=proposal.parent_fidelity,
                )
            )  # fmt: skip
        return trials

    # --- jobs ----------------------------------------------------------------

    def _run_pending(self, role: Role) -> None:
        self._run_jobs(self._pending(role))

    def _pending(self, role: Role) -> list[Job]:
        """Return the jobs of the unfinished trials of a role."""
        return self._jobs(self.study.batches, role)

    def _jobs(self, batches: Sequence[Sequence[str]], role: Role) -> list[Job]:
        """Return the jobs of a role's unfinished trials, in the stacks of the batches they were proposed in.

        Packing looks at whole batches, finished trials included, so that a resumed
        study trains the same stacks as an uninterrupted one.
        """
        current = {trial.id: trial for trial in self._current(role)}
        jobs = []
        for batch in batches:
            trials = [current[trial_id] for trial_id in batch if trial_id in current]
            for stack in pack(trials, self.study.header.ladder, self._stack_size(role, len(trials))):
                if any(unfinished(trial) for trial in stack):
                    jobs.append(self._job(stack, "train"))
        return jobs

    def _stack_size(self, role: Role, num_trials: int) -> int:
        """Return the most trials per job: a short batch of the search makes as many jobs as a full one.

        Otherwise the last batch would leave workers idle. Contenders of one validation
        seed and experts stay together as far as they fit, as do trials for one free worker.
        """
        if role is not Role.SEARCH or not self.plan.synchronous:
            return self.plan.stack
        num_jobs = math.ceil(self.plan.batch_size / self.plan.stack)
        return min(self.plan.stack, max(1, math.ceil(num_trials / num_jobs)))

    def _share(self) -> int:
        """Return how many trials one job of a full batch holds."""
        return math.ceil(self.plan.batch_size / math.ceil(self.plan.batch_size / self.plan.stack))

    def _job(self, trials: Sequence[Trial], kind: str) -> Job:
        # Names are part of it: two trials of equal content (the optimum may be uniform) are two results.
        content = self.plan.evaluator.fingerprint(trials, kind)
        return Job(fingerprint([content, [trial.id for trial in trials]]), tuple(trials), kind)

    def _run_jobs(self, jobs: Sequence[Job], *, more: Callable[[], Sequence[Job]] = lambda: ()) -> None:
        """Run jobs to their end.

        Args:
            jobs: What to begin with.
            more: Asked for further jobs when none is waiting, also while all workers train, so that
                whoever ends first finds one; and again after each report.
        """
        waiting, running = self._without_results(jobs), dict[str, Job]()
        attempts: Counter[str] = Counter()
        self.tracker.project(self.study)
        ask = True
        while (waiting or running or ask) and not asked():
            if ask and not waiting:
                further = more()
                waiting, ask = self._without_results(further), bool(further)
            if waiting and len(running) < self.executor.slots:
                job = waiting.pop(0)
                self._mark_running(job)
                running[job.fingerprint] = job
                self.executor.submit(job)
                continue
            self.watch.update(self.study, list(running.values()))
            for report in self.executor.collect(_POLL_SECONDS):
                del running[report.job.fingerprint]
                if report.results is None and self._may_retry(report, attempts):
                    waiting.insert(0, report.job)
                else:
                    self._keep(report)
                ask = True
                self.tracker.project(self.study)
        if asked():
            self._wind_down(running)
        self.watch.update(self.study, [])

    def _without_results(self, jobs: Sequence[Job]) -> list[Job]:
        """Keep the results that are there already, of a driver that died, and return the other jobs."""
        waiting = []
        for job in jobs:
            known = read_json(self.study.files.result(job.fingerprint))
            if known is None:
                waiting.append(job)
            else:
                self._keep(JobReport(job, read_results(known)))
        return waiting

    def _wind_down(self, running: dict[str, Job]) -> None:
        """Wait until what runs has ended or saved a checkpoint, keep what ended, and stop.

        Nothing is marked failed: the next start goes on with it.
        """
        logger.info("stopping jobs=%d; they end or save their state", len(running))
        self.executor.interrupt()
        while running:
            for report in self.executor.collect(_POLL_SECONDS):
                del running[report.job.fingerprint]
                if report.results is not None:
                    self._keep(report)
        raise KeyboardInterrupt

    def _mark_running(self, job: Job) -> None:
        ids = [t.id for t in job.trials if self.study.trial(t.id).status in (Status.PROPOSED, Status.FAILED)]
        if job.kind == "train" and ids:
            self.study.set_status(ids, Status.RUNNING)

    def _may_retry(self, report: JobReport, attempts: Counter[str]) -> bool:
        ids = [t.id for t in report.job.trials if self.study.trial(t.id).status is Status.RUNNING]
        self.study.set_status(ids, Status.FAILED, report.error)
        attempts[report.job.fingerprint] += 1
        again = report.retryable and attempts[report.job.fingerprint] <= self.plan.retries
        what = "retried" if again else "given up"
        logger.warning("job failed trials=%s error=%s; it is %s", ",".join(ids), report.error, what)
        return again

    def _keep(self, report: JobReport) -> None:
        if report.job.kind == "score":
            for result in report.results or ():
                self.study.rescore(result.observations)
            return
        for result in report.results or ():
            trial = self.study.trial(result.trial)
            if trial.status in (Status.DONE, Status.ABANDONED):
                continue
            self.study.finish(charged(result, trial, self.study.header.ladder))
            logger.info(
                "trial %s id=%s fidelity=%s cost=%.3f process_seconds=%.1f",
                result.status, trial.id, trial.fidelity, trial.price(self.study.header.ladder),
                sum(o.process_seconds for o in result.observations),
            )  # fmt: skip


def missing_validation(study: Study, plan: Plan) -> list[tuple[Contender, int, int]]:
    """Return (contender, replicate, seed) of the validation runs not in the ledger.

    One seed per replicate, the same for all contenders and used for nothing else, so
    that their differences are paired.
    """
    trials = [trial for trial in study.history().trials if trial.role is Role.VALIDATION]
    done = {(trial.label, trial.seed, trial.mixture) for trial in trials}
    seeds = [derive(study.header.seed, "validation", r) for r in range(plan.validation_seeds)]
    wanted = [(contender, r, seed) for r, seed in enumerate(seeds) for contender in study.contenders]
    return [(c, r, seed) for c, r, seed in wanted if (c.label, seed, c.mixture) not in done]


def unfinished(trial: Trial) -> bool:
    """Whether a new start works on a trial.

    It tries failed experts and validation runs again; the search has learned to live
    without its own.
    """
    return not trial.status.finished or (trial.status is Status.FAILED and trial.role is not Role.SEARCH)


def finished(study: Study, plan: Plan) -> bool:
    """Whether nothing is left to do under this plan."""
    if not study.headers or study.header.to_json() != plan.header.to_json() or study.recommendation is None:
        return False
    open_trials = [t for t in study.history().trials if unfinished(t)]
    labels = {contender.label for contender in study.contenders} - {RECOMMENDED}
    same = labels == set(plan.baselines)
    return not open_trials and same and not missing_validation(study, plan) and not plan.unscored(study)


def open_predictor(study: Study, plan: Plan) -> Predictor | None:
    """Open the MDE, or return None (with a warning) when an expert is missing."""
    if plan.predictor is None:
        return None
    try:
        return plan.predictor(study)
    except StudyError as error:
        logger.warning("mde unavailable reason=%s; the search goes on without its prior", error)
        return None


def charged(result: TrialResult, trial: Trial, ladder: Ladder) -> TrialResult:
    """Write each observation's nominal charge; they sum to the trial's price when it finishes."""
    observations: list[Observation] = []
    before = trial.parent_fidelity
    for observation in result.observations:
        cost = ladder.price(observation.fidelity, start=before)
        # The fixed part is paid once per run, at its first rung.
        cost -= ladder.fixed_cost if observations else 0.0
        observations.append(replace(observation, cost=cost))
        before = observation.fidelity
    return replace(result, observations=tuple(observations))


def pack(trials: Sequence[Trial], ladder: Ladder, stack: int) -> list[list[Trial]]:
    """Divide a batch into stacks of one model shape and about equal work.

    Longest first, each to the stack with the least work that has room; depends on the
    batch alone, never on how many workers there are.
    """

    def length(trial: Trial) -> int:
        start = ladder[trial.parent_fidelity].num_tokens if trial.parent_fidelity else 0
        return ladder[trial.fidelity].num_tokens - start

    stacks: list[list[Trial]] = []
    for model in dict.fromkeys(ladder[trial.fidelity].model for trial in trials):
        mine = [trial for trial in trials if ladder[trial.fidelity].model == model]
        group: list[list[Trial]] = [[] for _ in range(math.ceil(len(mine) / stack))]
        for trial in sorted(mine, key=length, reverse=True):
            room = [members for members in group if len(members) < stack]
            min(room, key=lambda members: (sum(map(length, members)), len(members))).append(trial)
        stacks += group
    order = {trial.id: i for i, trial in enumerate(trials)}
    return [sorted(members, key=lambda t: order[t.id]) for members in stacks]


def _contender(label: str, mixture: Mixture, prediction: Prediction, i: int) -> Contender:
    mean = {name: float(values[i]) for name, values in prediction.mean.items()}
    std = {name: float(values[i]) for name, values in prediction.std.items()}
    return Contender(label, mixture, mean, std)


def _stop_reason(left: float, ladder: Ladder) -> str:
    if left < min(rung.cost for rung in ladder):
        return f"budget spent: {max(0.0, left):.2f} top-rung runs left, less than the cheapest run costs"
    return f"no run is worth its price: {left:.2f} top-rung runs left"
