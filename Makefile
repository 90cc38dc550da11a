# Each target does all of its own set-up: it needs make and python3 (3.11 or newer), nothing else.
.POSIX:
.NOTPARALLEL:
.PHONY: help demo test test-guest kernels lint docs wheel bench clean

bin = .venv/bin
ARGS =

help:
	@echo 'make demo    a policy decides a recorded capture, then live packets where allowed'
	@echo 'make test    all tests, with the kernel where this machine allows it; ARGS="-k name"'
	@echo 'make test-guest   those of them that run on kernel 6.1, in a guest'
	@echo 'make kernels   docs/kernels.*: what was seen on which kernel, when that has changed'
	@echo 'make lint    ruff, mypy, import rules'
	@echo 'make docs    docs/_build/html'
	@echo 'make wheel   dist/*.whl, installed elsewhere and tried'
	@echo 'make bench   beside NetfilterQueue, fnfqueue and C; QUICK=1 for three minutes'
	@echo 'make clean   remove what the others made'

demo:
	@tools/setup.sh demo
	@$(bin)/python examples/demo.py

# An ordinary user's tests run in a user namespace, as the root of networks of their own.
test:
	@tools/setup.sh test
	@tools/with_namespaces.sh --anyway $(bin)/python -m pytest $(ARGS)

test-guest:
	@tools/setup.sh test
	@tools/with_namespaces.sh --anyway $(bin)/python -m pytest -m guest tests/guest tests/kernel $(ARGS)

# Only by this command: a file that changed with every run would tell nothing.
kernels:
	@tools/setup.sh test
	@tools/with_namespaces.sh --anyway $(bin)/python -m pytest tests/guest tests/kernel --kernels-table $(ARGS)

lint:
	@tools/setup.sh dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

docs:
	@tools/setup.sh docs
	$(bin)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html
	@echo 'docs: docs/_build/html/index.html'

wheel:
	@tools/setup.sh dev
	@tools/try_wheel.sh

# Kept apart from .venv: the peers are no dependency of anything else.
bench:
	@benchmarks/setup.sh
	@tools/with_namespaces.sh benchmarks/build/venv/bin/python -m benchmarks

clean:
	rm -rf .venv dist build docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache benchmarks/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
