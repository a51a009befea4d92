# `make train` and `make test` set up .venv by themselves. PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
ARGS ?=
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt

.PHONY: train test test-all lint bench clean

train: .venv/train.stamp
	.venv/bin/python scripts/train.py $(ARGS)

test: .venv/test.stamp
	.venv/bin/python -m pytest -m "not slow" -n auto $(ARGS)

test-all: .venv/all.stamp
	.venv/bin/python -m pytest $(ARGS)

lint: .venv/test.stamp
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: .venv/test.stamp
	.venv/bin/python benchmarks/speed.py $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch first and alone: its version is fixed, and no other package's range then picks another
.venv/train.stamp: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) --editable '.[mujoco]'
	touch $@

.venv/test.stamp: .venv/train.stamp
	$(PIP) --editable '.[mujoco,box2d,atari,video,pomdp,mo,lm,onnx,dev]'
	touch $@

.venv/all.stamp: .venv/test.stamp
	$(PIP) --editable '.[mujoco,box2d,atari,video,pomdp,mo,lm,onnx,envpool,dev]'
	touch $@
