# Two commands get a stranger going: `make demo` and `make test`. Each sets up what is missing first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
# Tests mostly wait for real servers: more workers than cores.
WORKERS ?= 4
# A run that hangs still says what it found.
TEST_LIMIT ?= 78m
export SENDENSE_HOME ?= $(CURDIR)/var
export PATH := $(CURDIR)/$(BIN):$(PATH)
export COVERAGE_FILE := $(CURDIR)/build/coverage/data

.PHONY: help setup demo up down test soak lint bench bench-whole docs protos clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Install what is missing: system packages and .venv
	@deploy/setup

demo: setup ## Watch a lab VM being backed up fully, then incrementally, and a file come back (about a minute)
	@$(BIN)/python -m sendense_node.demo

up: setup ## Run the whole system with the lab's vCenter in the foreground, until Ctrl-C
	@exec $(BIN)/sendense-node up

down: ## Stop what `make up` runs
	@$(BIN)/sendense-node down

test: ## Run all tests and print the coverage over all processes
	@deploy/setup test
	@rm -rf build/coverage && mkdir -p build/coverage
	timeout --foreground --signal INT --kill-after 60 $(TEST_LIMIT) \
	  $(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 30 $(TESTS)
	@$(BIN)/coverage combine -q build/coverage
	$(BIN)/coverage report

lint: setup ## Check style, types, imports, protos and generated code
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against '.git#branch=main'
	@deploy/check-generated

soak: setup ## Let anything happen to a repository, twenty times as long as in the tests (about half an hour)
	SENDENSE_MACHINE_RUNS=560 $(BIN)/pytest -n 0 -q tests/integration/repository/test_repository_machine.py

bench: setup ## Print ratios against nbdcopy, qemu-img, OpenSSH and plain copies, on two cores, in ten minutes
	$(BIN)/python tests/bench/run_all.py

bench-whole: setup ## Print rates and memory of the whole system: 500 GB sparse, WRITTEN_GIB=10, five VMs (minutes, 25 GiB)
	$(BIN)/python tests/bench/whole_system.py --written-gib $(or $(WRITTEN_GIB),10)

docs: setup ## Build the documentation site into site/
	$(BIN)/mkdocs build --strict

protos: setup ## Generate what is made from the protos: Python, Envoy's descriptors, openapi.json
	@protos/generate

clean: ## Remove builds, caches and the state of `make up`
	rm -rf build site var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
