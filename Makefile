# Every target sets up what it needs in .venv by itself. `make search` runs a campaign, `make test` the tests.
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2

venv   := .venv
vllm   := .venv-vllm
sglang := build/sglang-0.5.23
python := $(venv)/bin/python
pin     = $(shell sed -n 's/^$(1)==//p' constraints.txt)
pytest := $(python) -m pytest -n $(WORKERS) --dist loadfile -q
rooms  := dsl|kernels|evaluator|search_spaces|agent|deploy

.PHONY: help setup link search test test-all test-long test-extras test-gpu test-vllm test-sglang lint train clean

help:
	@echo "make setup     install everything into .venv"
	@echo "make search    run a campaign on this machine (more options: make search ARGS='--hours 1')"
	@echo "make test      the tests that need neither a GPU nor much time"
	@echo "make test-all  these and all others that need no GPU: long fuzzing and soak, clusters, the report in a browser,"
	@echo "               vLLM, SGLang's sources;  make test-long, test-extras: parts of it;  make test-gpu: a CUDA device"
	@echo "make test-vllm those with vLLM on the CPU, in an environment of their own, $(vllm)"
	@echo "make test-sglang  what is relied upon in the sources of SGLang, which are fetched into build/"
	@echo "make lint      ruff and mypy"
	@echo "make train     train the reference model in training/ (goes on where it stopped; docs/reference-model.md)"
	@echo "make clean     remove .venv and everything that was built"

$(python) $(vllm)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(@D:/bin=)

# torch and triton are left out of the derived constraints: which build they are is install_torch.sh's choice.
$(venv)/.installed: constraints.txt pyproject.toml scripts/install_torch.sh | $(python)
	grep -vE '^(torch|triton)==' constraints.txt >$(venv)/constraints.txt
	scripts/install_torch.sh $(python) $(venv)/constraints.txt $(call pin,torch) $(call pin,triton)
	$(python) -m pip install --quiet --constraint $(venv)/constraints.txt setuptools
	$(python) -m pip install --quiet --constraint $(venv)/constraints.txt --no-build-isolation \
		--config-settings editable_mode=strict --editable '.[dev]'
	touch $@

setup: link

link: $(venv)/.installed
	@scripts/link.sh $(python)

search: link
	$(venv)/bin/vortex search $(ARGS)

test: link
	$(pytest) $(ARGS)

extra := browser or dashboard or cluster

test-all: test-long test-extras test-vllm test-sglang

test-long: link
	$(pytest) -m 'not (gpu or vllm or $(extra))' $(ARGS)

$(venv)/.extras: $(venv)/.installed constraints-extras.txt scripts/install_browser.sh
	$(python) -m pip install --quiet --constraint $(venv)/constraints.txt --constraint constraints-extras.txt \
		'ray[default]' optuna-dashboard playwright
	scripts/install_browser.sh $(python)
	touch $@

test-extras: link $(venv)/.extras
	$(python) -m pytest -q -m '$(extra)' $(ARGS)

test-gpu: link
	$(python) -m pytest -q -m gpu $(ARGS)

$(vllm)/.installed: constraints-vllm.txt scripts/install_vllm.sh | $(vllm)/bin/python
	scripts/install_vllm.sh $(vllm)/bin/python constraints-vllm.txt
	touch $@

test-vllm: link $(vllm)/.installed
	@scripts/link.sh $(vllm)/bin/python
	$(vllm)/bin/python -m pytest -q -m vllm tests/test_vllm.py $(ARGS)
	$(python) -m pytest -q -m vllm tests/test_vllm_serve.py tests/test_vllm_verify.py $(ARGS)

# SGLang needs a GPU to run and other releases of torch: its wheel is unpacked to be read, and never installed.
$(sglang)/.unpacked: | $(venv)/.installed
	$(python) -m pip download --quiet --no-deps --only-binary :all: --dest $(sglang) sglang==$(sglang:build/sglang-%=%)
	$(python) -m zipfile -e $(sglang)/*.whl $(sglang)
	touch $@

test-sglang: link $(sglang)/.unpacked
	VORTEX_SGLANG=$(sglang) $(python) -m pytest -q -m 'not gpu' tests/test_sglang.py tests/test_sglang_contract.py $(ARGS)

# mypy reads the linked packages, which have their import names there; sed turns its paths back into the folders'.
lint: SHELL := bash
lint: .SHELLFLAGS := -o pipefail -c
lint: link
	$(python) -m ruff check .
	$(python) -m mypy -p vortexlab | sed -E 's#^build/linked/##; s#^vortexlab/(($(rooms))/)#\1#'

train: link
	$(python) -m vortexlab.evaluator.reference.train --resume $(ARGS)

clean:
	rm -rf $(venv) $(vllm) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
