# make reproduce   sets everything up, then reproduces one condition from nothing to report.html
# make test        sets everything up, then runs all tests
# make lint        checks style (ruff) and types (mypy), in seconds
# make notebooks   sets everything up, then executes all notebooks at the smallest size and checks what they show
# make browser-test  the same for the widgets, in a real browser (installs Chromium where that is allowed)
# make colab-test  the first notebook in a stand-in for Colab, killed in the middle and run again
# make ray-test    a study on a Ray cluster of this machine, one node of which is killed in the middle (installs Ray)
# make lerobot-test  our scenes, demonstrations and a policy through LeRobot itself, in an environment of its own
# make bench       shows the speed claims as ratios measured side by side
# ARGS="..." goes to lar reproduce, to pytest or to the script: make reproduce ARGS="--condition random_mask --seed 1"
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV := .venv
READY := $(VENV)/.ready
ARGS ?=

.PHONY: setup reproduce test lint notebooks browser-test colab-test ray-test lerobot-test bench clean

setup: $(READY)
	@sh scripts/install_gl.sh

$(READY): scripts/setup.sh pyproject.toml constraints.txt lar_core/scene/requirements.txt
	@sh scripts/setup.sh $(PYTHON) $(VENV)
	@touch $@

reproduce: setup
	@$(VENV)/bin/lar reproduce $(ARGS)

test: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.lint
	@$(VENV)/bin/ruff check lar_core tests scripts notebooks integrations
	@$(VENV)/bin/mypy

$(VENV)/.lint: $(READY)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lint]"
	@touch $@

notebooks: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/make_notebooks.py $(ARGS)

browser-test: setup
	@sh scripts/install_browser.sh
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	@OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/browser_test.py $(ARGS)

colab-test: setup
	@$(VENV)/bin/python scripts/colab_test.py $(ARGS)

ray-test: setup
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	@$(VENV)/bin/python scripts/ray_test.py $(ARGS)

lerobot-test: setup
	@sh scripts/lerobot_setup.sh $(PYTHON) build/lerobot-env
	@OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/lerobot_test.py $(ARGS)

bench: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python scripts/bench_env.py
	@$(VENV)/bin/python scripts/bench_saliency.py
	@$(VENV)/bin/python scripts/bench_cache.py
	@$(VENV)/bin/python scripts/bench_heads.py

clean:
	rm -rf $(VENV) build *.egg-info
