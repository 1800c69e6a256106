# `make help` lists the targets. STUDY and SEED choose the folder and the seed: make demo STUDY=runs/mine SEED=7
STUDY ?= runs/$(if $(TASK),$(basename $(notdir $(TASK))),tiny)
SEED ?= 0
CONFIGS ?= configs/tiny
# Fresh ones: the configurations were chosen on seed 0, and 1 to 3 were seen with an earlier choice.
SEEDS ?= 4 5 6
# Another task than the calculator, as in TASK=configs/tasks/json.yaml (docs/NEW_TASK.md)
TASK ?=
# More options of the finetune, as in FINETUNE='--model.lora_r 8', and of every stage
FINETUNE ?=
ON ?=
# Stages of a study at once, as in JOBS=2: measure first, on two shared cores it was slower (docs/LOG.md).
JOBS ?= 1
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
OPTIONS = $(if $(TASK),--task $(TASK)) $(subst --,--finetune.,$(FINETUNE)) $(subst --,--all.,$(ON))
# STUDY where somebody chose it: the tiny study's folder is no other study's.
GIVEN := $(if $(filter-out file,$(origin STUDY)),$(STUDY))
RUN = @$(PY) study.py --config $(CONFIGS)
ONE = --study $(STUDY) --seed $(SEED) $(OPTIONS)

interop-real: STUDY := $(or $(GIVEN),runs/smollm2)

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.DELETE_ON_ERROR:
.PHONY: help demo real-quick real gpu seeds controls planted rules faults sweep sweep-summary ranking features findings examples interop interop-real
.PHONY: full-shape wide-bases wide-features signals study-kills test test-slow test-checks lint clean

help:  ## Show this list
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; give another with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## Run every stage of the tiny study that is not done yet, then print the answer
	$(RUN)/study.yaml $(ONE) --jobs $(JOBS)

.PHONY: table
table: $(READY)  ## Print all tables of the tiny study
	@$(PY) -m delta_transcoders.report.summary $(STUDY)

real-quick: $(READY)  ## A real language model from the package index through the whole study (15 minutes, 4 GB)
	@$(PY) study.py --config configs/smollm2/quick.yaml $(if $(GIVEN),--study $(GIVEN)) --seed $(SEED) --jobs $(JOBS) $(OPTIONS)

real: $(READY)  ## The registered study of that model, on every registered seed (many hours, which the plan says first)
	@$(PY) study.py --config configs/smollm2/study.yaml $(if $(filter-out file,$(origin SEEDS)),--seeds $(SEEDS)) --jobs $(JOBS) $(OPTIONS)

# Training does not end alike where sums are rounded in another order (docs/LOG.md): how far the two studies' tables
# are apart is shown, and the identities of CI hold for each; with the CPU's own weights they must be the same.
MEASURED := behaviour exp1 exp2a exp2b
TABLES := $(MEASURED:%=%/metrics.csv)
gpu: $(READY)  ## Run the tiny study on a GPU too (runs/gpu), and compare its tables with the CPU's
	@$(PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA GPU here, nothing was run")'
	$(RUN)/study.yaml $(ONE)
	$(RUN)/study.yaml $(ONE) --study runs/gpu --all.trainer.accelerator auto \
	  --all.trainer.callbacks+=callbacks.peak_memory.PeakMemory
	@for stage in $(MEASURED); do $(PY) evaluate.py --config $(CONFIGS)/$$stage.yaml \
	  $(if $(TASK),--config $(TASK)) --study $(STUDY) --seed_everything $(SEED) --trainer.accelerator auto --trainer.callbacks+=callbacks.peak_memory.PeakMemory \
	  --trainer.logger false --model.output runs/gpu/weights_of_cpu/$$stage || exit 1; done
	$(PY) benchmarks/compare_tables.py $(STUDY) runs/gpu --atol inf --tables $(TABLES)
	$(PY) -m delta_transcoders.report.summary runs/gpu --check $(CONFIGS)/expected.yaml
	$(PY) benchmarks/compare_tables.py $(STUDY) runs/gpu/weights_of_cpu --atol .01 --rtol .001 --tables $(TABLES)

seeds: $(READY)  ## Run the whole tiny study on fresh seeds (SEEDS="4 5 6") and print each result
	$(RUN)/study_seeds.yaml --seeds $(SEEDS) $(OPTIONS)

controls: $(READY)  ## Every control of the tiny study, and the two targets beside each other
	$(RUN)/study_controls.yaml $(ONE)

planted: $(READY)  ## Finetunes whose answer is known (nothing, attention alone, MLPs alone), through the whole study
	$(RUN)/study_planted.yaml $(ONE)

rules: $(READY)  ## Run four planted rules: can the features that carry one be deleted without the others?
	$(RUN)/study_rules.yaml $(ONE)

faults: $(READY)  ## What each fault of the original study does to the numbers
	$(RUN)/study_faults.yaml $(ONE)

sweep: $(READY)  ## Every d_new × percentile × layer of the tiny study in one run
	$(RUN)/study_sweep.yaml $(ONE) --until sweep

sweep-summary: $(READY)  ## Experiment 1 over the sweep, summed up per configuration
	$(RUN)/study_sweep.yaml $(ONE)

ranking: $(READY)  ## Rank delta features by what dropping or keeping each alone does, for two deltas' seeds
	$(RUN)/study_ranking.yaml $(ONE)

features: $(READY)  ## How few features carry the finetune, also into the base model, and what goes with them
	$(RUN)/study_features.yaml $(ONE)

findings: $(READY)  ## All of docs/FINDINGS.md from nothing, on the seeds of its registered claims (hours)
	$(RUN)/study_findings.yaml --seeds $(if $(filter-out file,$(origin SEEDS)),$(SEEDS),$$($(PY) -m delta_transcoders.study.seeds)) $(OPTIONS)

examples: $(READY)  ## Run the notebooks of examples/ on the tiny study
	$(RUN)/study.yaml $(ONE) --until features
	@for notebook in examples/*.ipynb; do \
	  STUDY=$(abspath $(STUDY)) $(PY) examples/run.py $$notebook || exit 1; done

# Other tools, each in an environment of its own: their versions of transformers and ours do not go together.
INTEROP = $(STUDY)/interop
OFFLINE := HF_HUB_OFFLINE=1
define OPENED
$(OFFLINE) .venv-saelens/bin/python interop/check_saelens.py $(INTEROP)
$(OFFLINE) .venv-circuit-tracer/bin/python interop/check_circuit_tracer.py $(INTEROP)
@for export in $(INTEROP)/circuit_tracer/*; do graph=$(INTEROP)/graph/$$(basename $$export).json; \
  [ ! -f $$graph ] || $(PY) -m delta_transcoders.features.circuit_tracer_graph $$graph --export $$export || exit 1; done
$(OFFLINE) .venv-circuit-tracer/bin/python interop/check_circuit_tracer_page.py $(INTEROP)
endef
.venv-saelens/.ready: PACKAGES := sae-lens
.venv-circuit-tracer/.ready: PACKAGES := circuit-tracer "nnsight<0.8"
.venv-%/.ready: interop/constraints-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $< torch $(PACKAGES)
	@touch $@

interop: $(READY) .venv-saelens/.ready .venv-circuit-tracer/.ready  ## Open the tiny study's exports and public layouts in SAELens and circuit-tracer, and compare
	$(RUN)/study.yaml $(ONE) --until features
	$(PY) -m interop.prepare $(STUDY) $(INTEROP)
	$(PY) -m interop.prepare_published $(STUDY)/finetune/merged $(INTEROP)
	$(OFFLINE) .venv-saelens/bin/python interop/check_saelens_published.py $(INTEROP)
	$(OFFLINE) .venv-circuit-tracer/bin/python interop/check_circuit_tracer_published.py $(INTEROP)
	$(OPENED)

interop-real: $(READY) .venv-saelens/.ready .venv-circuit-tracer/.ready  ## The same with a finished study's own (STUDY=runs/smollm2), rounded to bfloat16, with a graph
	$(PY) -m interop.prepare $(STUDY) $(INTEROP) --dtype bfloat16 --brief
	$(OPENED)

full-shape: $(READY)  ## Peak memory of Gemma 2 2B's stages at full shape, random weights (20 minutes, 13 GB of disk)
	$(PY) benchmarks/full_shape.py --require-gb 14

wide-bases: $(READY)  ## Peak memory beside dictionaries of 163,840 features, random weights
	$(PY) benchmarks/wide_bases.py --require-gb 6

wide-features: $(READY)  ## Time and memory of feature statistics of 26 × 128 features on a million tokens (5 GB of disk)
	$(PY) benchmarks/wide_features.py --require-minutes 10 --require-gb 4

signals: $(READY)  ## What SIGTERM, SIGINT and SIGKILL do to every stage in every phase (half an hour)
	$(PY) benchmarks/signals_table.py

study-kills: $(READY)  ## SIGKILL a study at ten random moments, and compare its tables with an undisturbed one's
	$(RUN)/study.yaml $(ONE) --until base_transcoders
	$(PY) benchmarks/study_kills.py $(STUDY)

test: $(READY)  ## Run the tests (minutes, offline, on two cores)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile

test-slow: $(READY)  ## Run the tests of whole studies and of pages in a browser (Debian's chromium), the wheel
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile -m slow

test-checks: $(READY)  ## Run `delta-transcoders check` through every stage of three shipped studies (15 minutes)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist load -m checks

lint: $(READY)  ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:  ## Remove the tiny study and all caches (not .venv*)
	rm -rf $(STUDY) runs/seeds .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
