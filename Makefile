# Everything runs in .venv, made on first use; needs only python3 (3.11 or 3.12) with venv, and make.
# Once installed nothing here needs the network.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
STEPS ?=
JOBS ?= 2

.PHONY: demo test test-slow lint clean

# A small F5-TTS trained on this machine's CPU, then heard: demo/out.wav and pictures.
#   make demo DATA=DIR   your own folder of speech (metadata.csv + wavs/)
#   make demo STEPS=N    fewer steps, for a quick look
demo: $(VENV)/.ready-demo
	$(BIN)/python -m launch.run_demo --out=demo $(if $(DATA),--data=$(DATA)) $(if $(STEPS),--steps=$(STEPS))

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(JOBS) -m slow

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Murmuration needs Python 3.11 or 3.12; $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.12 ..." if v not in ((3, 11), (3, 12)) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: $(BIN)/python setup.py
	@echo "Installing Murmuration into $(VENV) (about a minute)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[speech]"
	@touch $@

$(VENV)/.ready-dev: $(BIN)/python setup.py
	@echo "Installing Murmuration with its test tools into $(VENV) (about two minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[speech,evaluation,tensorboard,pinyin,images,detection,export,dev]"
	@touch $@ $(VENV)/.ready-demo

clean:
	rm -rf $(VENV) .cache demo build *.egg-info
