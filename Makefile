# make demo   four recipes trained and compared on a made data set, from nothing
# make test   the test suite, from nothing
# make check  format, lint, types and tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= runs/demo
DEMO_DATA := shapes:train=8000,val=1000

.PHONY: demo test check install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'unimim needs Python 3.11 or newer, e.g. make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check $(patsubst %/pyproject.toml,--editable %,$(wildcard plugins/*/pyproject.toml))
	touch $@

demo: $(INSTALLED)
	$(BIN)/unimim teachers train-clip --data $(DEMO_DATA) --patch-size 16 --epochs 12 --batch 64 --out $(DEMO)/teacher
	$(BIN)/unimim compare mae-micro beit-micro data2vec-micro maskdistill-micro student.patch_size=16 epochs=6 batch=64 precision=float32 \
	  beit-micro:teacher.max_tokens=32768 maskdistill-micro:teacher.model=local-dir:$(DEMO)/teacher \
	  --data $(DEMO_DATA) --in-memory --probe-images 4000 --log-every 25 --out $(DEMO)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --maxschedchunk 1 tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --maxschedchunk 1 plugins

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
