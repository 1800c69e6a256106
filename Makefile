# `make help` lists the targets. STUDY and SEED choose the folder and the seed: make demo STUDY=runs/mine SEED=7
STUDY ?= runs/$(if $(TASK),$(basename $(notdir $(TASK))),tiny)
SEED ?= 0
CONFIGS ?= configs/tiny
# Fresh ones: the configurations were chosen on seed 0, and 1 to 3 were seen with an earlier choice.
SEEDS ?= 4 5 6
# Another task than the calculator, as in TASK=configs/tasks/json.yaml (docs/NEW_TASK.md)
TASK ?=
# More options for the finetune's stage, as in FINETUNE='--model.lora_r 8'
FINETUNE ?=
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
EXPERIMENTS := exp1 exp2a exp2b
RESULTS = $(STUDY)/behaviour/done.json $(EXPERIMENTS:%=$(STUDY)/%/done.json)
STAGE = $(if $(TASK),--config $(TASK)) --study $(STUDY) --seed_everything $(SEED) $(ON)
TIMED = @$(PY) -m delta_transcoders.report.stage_times run $(STUDY)

# A stage is done when it has written `done.json`, which it does last of all.
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export PYTHONHASHSEED := 0
export PYTHONUNBUFFERED := 1

.DELETE_ON_ERROR:
.PHONY: help demo gpu seeds controls planted faults sweep sweep-summary ranking findings examples interop
.PHONY: full-shape wide-bases signals test lint clean table

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
	@$(PY) -m delta_transcoders.report.comparisons $(STUDY)/exp2a > /dev/null
	@$(PY) -m delta_transcoders.report.summary $(STUDY)
	@$(PY) -m delta_transcoders.report.html $(STUDY)

# Training does not end alike where sums are rounded in another order (docs/LOG.md): how far the two studies' tables
# are apart is shown, and the bounds of CI hold for each; with the CPU's own weights they must be the same.
TABLES = $(RESULTS:$(STUDY)/%/done.json=%/metrics.csv)
gpu: ON := --trainer.accelerator auto --trainer.callbacks+=callbacks.peak_memory.PeakMemory
gpu: $(READY)  ## Run the tiny study on a GPU too (runs/gpu), and compare its tables with the CPU's
	@$(PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no CUDA GPU here, nothing was run")'
	@$(MAKE) --no-print-directory demo ON=
	@$(MAKE) --no-print-directory demo STUDY=runs/gpu ON='$(ON)'
	@for stage in behaviour $(EXPERIMENTS); do $(PY) evaluate.py --config $(CONFIGS)/$$stage.yaml $(STAGE) \
	  --trainer.logger false --model.output runs/gpu/weights_of_cpu/$$stage || exit 1; done
	$(PY) benchmarks/compare_tables.py $(STUDY) runs/gpu --atol inf --tables $(TABLES)
	$(PY) -m delta_transcoders.report.summary runs/gpu --check $(CONFIGS)/expected.yaml
	$(PY) benchmarks/compare_tables.py $(STUDY) runs/gpu/weights_of_cpu --atol .01 --rtol .001 --tables $(TABLES)

seeds: $(READY)  ## Run the whole tiny study on fresh seeds (SEEDS="4 5 6") and print each result
	@for seed in $(SEEDS); do \
	  $(MAKE) --no-print-directory demo STUDY=runs/seeds/$$seed SEED=$$seed || exit 1; done

$(STUDY)/base_model/done.json: | $(READY)
	$(TIMED) base_model -- $(PY) train.py --config $(CONFIGS)/base_model.yaml $(STAGE)

$(STUDY)/finetune/done.json: $(STUDY)/base_model/done.json
	$(TIMED) finetune -- $(PY) train.py --config $(CONFIGS)/lora.yaml $(STAGE) $(FINETUNE)

$(STUDY)/behaviour/done.json: $(STUDY)/finetune/done.json
	$(TIMED) behaviour -- $(PY) evaluate.py --config $(CONFIGS)/behaviour.yaml $(STAGE)

$(STUDY)/base_activations/done.json: $(STUDY)/base_model/done.json
	$(TIMED) base_activations -- $(PY) evaluate.py --config $(CONFIGS)/base_activations.yaml $(STAGE)

$(STUDY)/base_transcoders/done.json: $(STUDY)/base_activations/done.json
	$(TIMED) base_transcoders -- $(PY) train.py --config $(CONFIGS)/base_transcoder.yaml $(STAGE)

$(STUDY)/activations/done.json: $(STUDY)/finetune/done.json
	$(TIMED) activations -- $(PY) evaluate.py --config $(CONFIGS)/activations.yaml $(STAGE)

# Training a delta adds residuals to the cache, and their names to its list: only its absence asks for a
# new capture.
$(STUDY)/delta/done.json: $(STUDY)/base_transcoders/done.json $(STUDY)/finetune/done.json | $(STUDY)/activations/done.json
	$(TIMED) delta -- $(PY) train.py --config $(CONFIGS)/delta.yaml $(STAGE)

$(EXPERIMENTS:%=$(STUDY)/%/done.json): $(STUDY)/%/done.json: $(STUDY)/delta/done.json
	$(TIMED) $* -- $(PY) evaluate.py --config $(CONFIGS)/$*.yaml $(STAGE)

# Controls: more things to put in the delta's place, see docs/CONTROLS.md.
$(STUDY)/corrections/done.json: $(STUDY)/delta/done.json
	$(TIMED) corrections -- $(PY) train.py --config $(CONFIGS)/corrections.yaml $(STAGE)

$(STUDY)/dense/done.json: $(STUDY)/delta/done.json
	$(TIMED) dense -- $(PY) train.py --config $(CONFIGS)/delta.yaml $(STAGE) --model.output $(STUDY)/dense \
	  --model.sparsity '{mode: l1, l1_weight: 0.0}' --trainer.logger.name dense

$(STUDY)/base_model_delta/done.json: $(STUDY)/delta/done.json
	$(TIMED) base_model_on_examples -- $(PY) evaluate.py --config $(CONFIGS)/activations.yaml $(STAGE) \
	  --model.model $(STUDY)/base_model --data.model $(STUDY)/base_model \
	  --trainer.callbacks.output $(STUDY)/base_model_on_examples
	$(TIMED) base_model_delta -- $(PY) train.py --config $(CONFIGS)/delta.yaml $(STAGE) \
	  --data.cache $(STUDY)/base_model_on_examples --data.model $(STUDY)/base_model \
	  --model.output $(STUDY)/base_model_delta --trainer.logger.name base_model_delta

$(STUDY)/mlp_difference/done.json: $(STUDY)/delta/done.json
	$(TIMED) mlp_difference -- $(PY) train.py --config $(CONFIGS)/mlp_difference.yaml $(STAGE)

$(STUDY)/controls/done.json: $(STUDY)/corrections/done.json $(STUDY)/dense/done.json $(STUDY)/base_model_delta/done.json
	$(TIMED) controls -- $(PY) evaluate.py --config $(CONFIGS)/controls.yaml $(STAGE)

$(STUDY)/targets/done.json: $(STUDY)/mlp_difference/done.json
	$(TIMED) targets -- $(PY) evaluate.py --config $(CONFIGS)/targets.yaml $(STAGE)

$(STUDY)/base_floor/done.json: $(STUDY)/delta/done.json
	$(TIMED) base_floor -- $(PY) evaluate.py --config $(CONFIGS)/base_floor.yaml $(STAGE)

CONTROLS = $(STUDY)/controls/done.json $(STUDY)/targets/done.json $(STUDY)/base_floor/done.json
controls: $(READY)  ## Every control of the tiny study, and the two targets beside each other
	@$(MAKE) --no-print-directory $(CONTROLS)

# Finetunes whose answer is known (the study's own adapts MLPs alone): of nothing, of attention alone, and of
# both, as the original study had it. They share the base.
PLANTED_none := --model.lr 0
PLANTED_attention := --model.target_modules '[q_proj, k_proj, v_proj, o_proj]'
PLANTED_all_linear := --model.target_modules '[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]'
PLANTED := $(patsubst %,$(STUDY)/planted/%/exp2a/done.json,none attention all_linear)
$(PLANTED): $(STUDY)/planted/%/exp2a/done.json: $(STUDY)/base_transcoders/done.json
	@mkdir -p $(STUDY)/planted/$*
	@for folder in base_model base_activations base_transcoders; do \
	  ln -sfn $(abspath $(STUDY))/$$folder $(STUDY)/planted/$*/$$folder; done
	@$(MAKE) --no-print-directory demo STUDY=$(STUDY)/planted/$* EXPERIMENTS='exp1 exp2a' FINETUNE="$(PLANTED_$*)"

planted: $(READY)  ## Finetunes whose answer is known (nothing, attention alone) or mixed, through the whole study
	@$(MAKE) --no-print-directory $(PLANTED)

# The original study's faults, one at a time and together.
FAULT_right :=
FAULT_site := --model.deltas '[$(STUDY)/delta_site_residual]'
FAULT_site_and_scale := --model.deltas '[$(STUDY)/delta_site_original]'
FAULT_prompt_only := --model.prompt_only true
FAULT_bare_text := --model.bare_text true
FAULT_all := $(FAULT_site_and_scale) $(FAULT_prompt_only) $(FAULT_bare_text)
FAULTS := $(patsubst %,$(STUDY)/faults/%/done.json,right site site_and_scale prompt_only bare_text all)
SITES := $(STUDY)/delta_site_residual/done.json $(STUDY)/delta_site_original/done.json
$(SITES): $(STUDY)/delta_site_%/done.json: $(STUDY)/delta/done.json
	$(TIMED) activations_$* -- $(PY) evaluate.py --config $(CONFIGS)/activations.yaml $(STAGE) \
	  --model.hook_site $* --trainer.callbacks.output $(STUDY)/activations_$*
	$(TIMED) delta_site_$* -- $(PY) train.py --config $(CONFIGS)/delta.yaml $(STAGE) \
	  --data.cache $(STUDY)/activations_$* --model.output $(STUDY)/delta_site_$* \
	  --trainer.logger.name delta_site_$*

$(FAULTS): $(STUDY)/faults/%/done.json: $(SITES)
	$(TIMED) faults_$* -- $(PY) evaluate.py --config $(CONFIGS)/faults.yaml $(STAGE) \
	  --model.output $(STUDY)/faults/$* $(FAULT_$*)

faults: $(READY)  ## What each fault of the original study does to the numbers
	@$(MAKE) --no-print-directory $(FAULTS)

$(STUDY)/sweep_base_transcoders/done.json: $(STUDY)/base_activations/done.json
	$(TIMED) sweep_base_transcoders -- $(PY) train.py --config $(CONFIGS)/base_transcoder.yaml $(STAGE) \
	  --model.l0 '[16, 32, 64]' --model.output $(STUDY)/sweep_base_transcoders

sweep: $(READY) $(STUDY)/sweep_base_transcoders/done.json | $(STUDY)/activations/done.json  ## Every d_new × percentile × layer of the tiny study in one run
	$(TIMED) sweep -- $(PY) train.py --config $(CONFIGS)/sweep.yaml $(STAGE)

sweep-summary: sweep  ## Experiment 1 over the sweep, summed up per configuration
	$(TIMED) exp1_sweep -- $(PY) evaluate.py --config $(CONFIGS)/exp1_sweep.yaml $(STAGE)
	$(PY) -m delta_transcoders.report.sweep_summary $(STUDY)/exp1_sweep

# A delta trained with another seed on the same model, to see whether the ranking comes back.
$(STUDY)/delta_reseeded/done.json: $(STUDY)/delta/done.json
	$(TIMED) delta_reseeded -- $(PY) train.py --config $(CONFIGS)/delta.yaml $(STAGE) \
	  --seed_everything $$(($(SEED) + 1000)) --model.output $(STUDY)/delta_reseeded \
	  --trainer.logger.name delta_reseeded

$(STUDY)/ranking/done.json: $(STUDY)/delta/done.json
	$(TIMED) ranking -- $(PY) evaluate.py --config $(CONFIGS)/ranking.yaml $(STAGE)

$(STUDY)/ranking_reseeded/done.json: $(STUDY)/delta_reseeded/done.json
	$(TIMED) ranking_reseeded -- $(PY) evaluate.py --config $(CONFIGS)/ranking.yaml $(STAGE) \
	  --model.delta $(STUDY)/delta_reseeded --model.output $(STUDY)/ranking_reseeded \
	  --trainer.logger.name ranking_reseeded

RANKINGS = $(STUDY)/ranking/done.json $(STUDY)/ranking_reseeded/done.json
ranking: $(READY)  ## Rank delta features by what dropping or keeping each alone does, for two deltas' seeds
	@$(MAKE) --no-print-directory $(RANKINGS)
	$(PY) -m delta_transcoders.report.ranking $(STUDY)/ranking $(STUDY)/ranking_reseeded

COMPARED := exp2a exp2b controls targets faults/all
findings: $(READY)  ## All of docs/FINDINGS.md from nothing: everything above on SEEDS
	@for seed in $(SEEDS); do \
	  $(MAKE) --no-print-directory demo controls faults planted ranking \
	    STUDY=runs/seeds/$$seed SEED=$$seed || exit 1; done
	@for experiment in $(COMPARED); do \
	  $(PY) -m delta_transcoders.report.comparisons --out runs/seeds/comparisons/$$experiment \
	    $(foreach seed,$(SEEDS),runs/seeds/$(seed)/$$experiment) || exit 1; done
	$(PY) -m delta_transcoders.report.findings $(SEEDS:%=runs/seeds/%)

examples: $(READY) $(STUDY)/delta/done.json  ## Run the notebooks of examples/ on the tiny study
	@for notebook in examples/*.ipynb; do \
	  STUDY=$(abspath $(STUDY)) $(PY) examples/run.py $$notebook || exit 1; done

# Other tools, each in an environment of its own: their versions of transformers and ours do not go together.
INTEROP := $(STUDY)/interop
.venv-saelens/.ready: PACKAGES := sae-lens
.venv-circuit-tracer/.ready: PACKAGES := circuit-tracer nnsight
.venv-%/.ready: interop/constraints-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $< torch $(PACKAGES)
	@touch $@

interop: $(READY) .venv-saelens/.ready .venv-circuit-tracer/.ready $(STUDY)/delta/done.json  ## Open the tiny study's export in SAELens and circuit-tracer, and compare
	$(PY) -m interop.prepare $(STUDY) $(INTEROP)
	HF_HUB_OFFLINE=1 .venv-saelens/bin/python interop/check_saelens.py $(INTEROP)
	HF_HUB_OFFLINE=1 .venv-circuit-tracer/bin/python interop/check_circuit_tracer.py $(INTEROP)

full-shape: $(READY)  ## Peak memory of Gemma 2 2B's stages at full shape, random weights (20 minutes, 13 GB of disk)
	$(PY) benchmarks/full_shape.py --require-gb 14

wide-bases: $(READY)  ## Peak memory beside dictionaries of 163,840 features, random weights
	$(PY) benchmarks/wide_bases.py --require-gb 6

signals: $(READY)  ## What SIGTERM, SIGINT and SIGKILL do to every stage in every phase (half an hour)
	$(PY) benchmarks/signals_table.py

test: $(READY)  ## Run the tests (minutes, offline, on two cores)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile

lint: $(READY)  ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:  ## Remove the tiny study and all caches (not .venv*)
	rm -rf $(STUDY) runs/seeds .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
