# make run     install what is needed, then the quickstart study
# make test    the same environment plus the test tools, then the tests
# make setup   only the environment
#
# TORCH chooses another build of torch: the words after `pip install` in what the selector on
# pytorch.org prints, for example  make run TORCH="torch --index-url <URL printed there>"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
STUDY ?= experiments/studies/quickstart.yaml
BIN := $(VENV)/bin
LOG := $(VENV)/install.log

.PHONY: run test test-faults docs setup setup-test check format bench bench-proxies bench-replay bench-hard bench-mde public-runs clean

run: setup
	@$(BIN)/mixopt run $(STUDY)

test: setup-test
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

setup: $(VENV)/.installed

setup-test: $(VENV)/.installed-test

# Torch goes first: an installed torch that fits keeps pip from fetching a larger build.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; choose one with PYTHON=python3.12"; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time; details in $(LOG))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --upgrade pip && $(BIN)/python -m pip install $(TORCH) && $(BIN)/python -m pip install -e . ; } > $(LOG) 2>&1 || { tail -n 20 $(LOG); exit 1; }
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the test tools"
	@$(BIN)/python -m pip install -e '.[dev]' >> $(LOG) 2>&1 || { tail -n 20 $(LOG); exit 1; }
	@touch $@

# Types are checked on an installed copy, because the four folders are mapped into one package.
check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@rm -rf build && $(BIN)/python -m pip install --quiet --no-deps --target build/checked . 2>> $(LOG)
	MYPYPATH=build/checked $(BIN)/mypy -p mixopt

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Real damage on real Ray and MLflow, and 10,000 damaged files per reader (docs/reliability.md).
test-faults: setup-test
	OMP_NUM_THREADS=1 FUZZ_INPUTS=10000 $(BIN)/python -m pytest tests/faults tests/property/test_study_machine.py tests/fuzz -m "" -n 2 --dist loadgroup

# The documentation as a site, in build/site; a link that leads nowhere is an error.
docs: setup
	@$(BIN)/python -m pip install --quiet -e '.[docs]' >> $(LOG) 2>&1 || { tail -n 20 $(LOG); exit 1; }
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Our own measurements; results are in docs/log.md.
bench: setup
	$(BIN)/mixopt check $(STUDY)
	$(BIN)/mixopt bench lr $(STUDY)
	$(BIN)/mixopt bench moe-vs-dense $(STUDY)
	$(BIN)/mixopt bench warmstart $(STUDY) --seeds 2
	$(BIN)/python tests/bench/recipe.py $(STUDY) ema=0.98 ema=0.99 ema=0.995
	$(BIN)/python tests/bench/regret.py 0.1
	$(BIN)/python tests/bench/regret.py 0.3

# The trainer against Hugging Face's models of the same sizes (docs/benchmarks.md).
bench-proxies: setup-test
	$(BIN)/python tests/bench/proxies.py

# Optimizers on published runs and on hard cases (docs/benchmarks.md); both resume. REGMIX is the folder data/ of sail-sg/regmix.
bench-replay: setup-test
	@test -n "$(REGMIX)" || { echo "name the published runs: make bench-replay REGMIX=DIR"; exit 2; }
	$(BIN)/python tests/bench/replay.py $(REGMIX) --out docs/benchmarks.md

bench-hard: setup-test
	$(BIN)/python tests/bench/hard.py

# The predictor on the public set of runs (docs/benchmarks.md); trains nothing.
bench-mde: setup-test
	$(BIN)/python tests/bench/mde_speed.py
	$(BIN)/python tests/bench/mde.py --out docs/benchmarks.md

# Train that set anew: one to two CPU hours, resumable.
public-runs: setup-test
	$(BIN)/python tests/bench/public_runs.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
