# `make help` lists the targets. STUDY and SEED choose the folder and the seed: make demo STUDY=runs/mine SEED=7
STUDY ?= runs/tiny
SEED ?= 0
CONFIGS ?= configs/tiny
SEEDS ?= 1 2 3
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
EXPERIMENTS := exp1 exp2a exp2b
RESULTS = $(STUDY)/behaviour/metrics.csv $(EXPERIMENTS:%=$(STUDY)/%/metrics.csv)
STAGE = --study $(STUDY) --seed_everything $(SEED)
TIMED = $(PY) -m delta_transcoders.report.stage_times run $(STUDY)

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export PYTHONHASHSEED := 0
export PYTHONUNBUFFERED := 1

.DELETE_ON_ERROR:
.PHONY: help demo seeds sweep sweep-summary ranking test lint clean table

help:  ## Show this list
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; give another with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## Run every stage of the tiny study that is not done yet, then print the results
	@$(MAKE) --no-print-directory $(RESULTS)
	@$(MAKE) --no-print-directory table

table: $(READY)
	@$(PY) -m delta_transcoders.report.summary $(STUDY)
	@$(PY) -m delta_transcoders.report.html $(STUDY)

seeds: $(READY)  ## Run the whole tiny study on fresh seeds (SEEDS="1 2 3") and print each result
	@for seed in $(SEEDS); do \
	  $(MAKE) --no-print-directory demo STUDY=runs/seeds/$$seed SEED=$$seed || exit 1; done

$(STUDY)/base_model/config.json: | $(READY)
	$(TIMED) base_model -- $(PY) train.py --config $(CONFIGS)/base_model.yaml $(STAGE)

$(STUDY)/finetune/merged/config.json: $(STUDY)/base_model/config.json
	$(TIMED) finetune -- $(PY) train.py --config $(CONFIGS)/lora.yaml $(STAGE)

$(STUDY)/behaviour/metrics.csv: $(STUDY)/finetune/merged/config.json
	$(TIMED) behaviour -- $(PY) evaluate.py --config $(CONFIGS)/behaviour.yaml $(STAGE)

$(STUDY)/base_activations/manifest.json: $(STUDY)/base_model/config.json
	$(TIMED) base_activations -- $(PY) evaluate.py --config $(CONFIGS)/base_activations.yaml $(STAGE)

# Folders whose files' names hold measured numbers are marked done by a file of ours.
$(STUDY)/base_transcoders/.done: $(STUDY)/base_activations/manifest.json
	$(TIMED) base_transcoders -- $(PY) train.py --config $(CONFIGS)/base_transcoder.yaml $(STAGE)
	@touch $@

$(STUDY)/activations/manifest.json: $(STUDY)/finetune/merged/config.json
	$(TIMED) activations -- $(PY) evaluate.py --config $(CONFIGS)/activations.yaml $(STAGE)

# Training a delta adds residuals to the cache's manifest: only its absence asks for a new capture.
$(STUDY)/delta/.done: $(STUDY)/base_transcoders/.done $(STUDY)/finetune/merged/config.json | $(STUDY)/activations/manifest.json
	$(TIMED) delta -- $(PY) train.py --config $(CONFIGS)/delta.yaml $(STAGE)
	@touch $@

$(EXPERIMENTS:%=$(STUDY)/%/metrics.csv): $(STUDY)/%/metrics.csv: $(STUDY)/delta/.done
	$(TIMED) $* -- $(PY) evaluate.py --config $(CONFIGS)/$*.yaml $(STAGE)

$(STUDY)/sweep_base_transcoders/.done: $(STUDY)/base_activations/manifest.json
	$(TIMED) sweep_base_transcoders -- $(PY) train.py --config $(CONFIGS)/base_transcoder.yaml $(STAGE) \
	  --model.l0 '[16, 32, 64]' --model.output $(STUDY)/sweep_base_transcoders
	@touch $@

sweep: $(READY) $(STUDY)/sweep_base_transcoders/.done | $(STUDY)/activations/manifest.json  ## Every d_new × percentile × layer of the tiny study in one run
	$(TIMED) sweep -- $(PY) train.py --config $(CONFIGS)/sweep.yaml $(STAGE)

sweep-summary: sweep  ## Experiment 1 over the sweep, summed up per configuration
	$(TIMED) exp1_sweep -- $(PY) evaluate.py --config $(CONFIGS)/exp1_sweep.yaml $(STAGE)
	$(PY) -m delta_transcoders.report.sweep_summary $(STUDY)/exp1_sweep

ranking: $(READY) $(STUDY)/delta/.done  ## Rank the delta's features by what dropping or keeping each alone does
	$(TIMED) ranking -- $(PY) evaluate.py --config $(CONFIGS)/ranking.yaml $(STAGE)
	$(PY) -m delta_transcoders.report.ranking $(STUDY)/ranking

test: $(READY)  ## Run the tests (minutes, offline)
	OMP_NUM_THREADS=1 $(PY) -m pytest

lint: $(READY)  ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:  ## Remove the tiny study and all caches (not .venv)
	rm -rf $(STUDY) runs/seeds .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
