# make demo        install, serve the embedded model, ask it one question, keep serving (ONCE=1: stop after the answer)
# make test        install with the development tools; lint, types, layers and tests
# make proof       the full-size proofs; writes their figures to docs/proofs
# make cluster     the tests and measurements on Ray, which it installs (630 MB); figures to docs/proofs
# make outside     others' test suites and clients, in environments of their own, against our server
# make bench       the benchmarks
# make tour        run docs/tour.md's commands anew and take its pictures of the page
# make lock        renew constraints.txt from this environment

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Without this OpenMP's threads spin at barriers, and tests that share the cores with a browser or a server crawl.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint unit proof cluster outside bench tour lock chromium clean

demo: $(VENV)/.ready
	@$(BIN)/mmserve demo $(if $(ONCE),--once)

test: lint unit

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.ready-dev chromium
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not gpu and not proof and not ray" -q -n 2 --dist loadfile

# Each proof's output replaces the one in docs/proofs; docs/proofs.md says what they show.
proof: SHELL := bash -o pipefail
proof: MEDIA := tests/proofs/test_media.py tests/vision tests/sounds tests/models/test_video.py tests/models/test_qwen2_audio.py
proof: $(VENV)/.ready-dev
	$(BIN)/python -m bench.easy_vqa | tee docs/proofs/easy-vqa.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/proofs/test_identity.py | tee docs/proofs/identity.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/proofs/test_mixes.py | tee docs/proofs/mixes.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/models | tee docs/proofs/families.txt
	$(BIN)/pytest -m proof -q -s --no-header $(MEDIA) | tee docs/proofs/media.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/engine/parallel | tee docs/proofs/tp.txt
	$(BIN)/pytest -m proof -q --no-header tests/proofs/test_adversarial.py | tee docs/proofs/adversarial.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/proofs/test_constrained.py | tee docs/proofs/constrained.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/grammar | tee docs/proofs/grammar.txt
	$(BIN)/python -m bench.constrained | tee docs/proofs/constrained-speed.txt
	$(BIN)/python -m bench.caption | tee docs/proofs/captions.txt
	$(BIN)/python -m bench.page | tee docs/proofs/page.txt
	$(BIN)/python -m bench.quantised | tee docs/proofs/quantised.txt
	$(BIN)/python -m bench.radix --plot docs/proofs/radix.png | tee docs/proofs/radix.txt
	$(BIN)/python -m bench.hit_rate | tee docs/proofs/hit-rate.txt
	$(BIN)/python -m bench.second_tier | tee docs/proofs/second-tier.txt
	$(BIN)/python -m bench.soak --requests 20000 | tee docs/proofs/soak.txt
	$(BIN)/python -m bench.load | tee docs/proofs/load.txt
	$(BIN)/python -m bench.ordeal kill hang disk terminate | tee docs/proofs/ordeal.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/proofs/test_openapi.py | tee docs/proofs/openapi.txt
	$(BIN)/pytest -m proof -q -s --no-header tests/proofs/test_fuzz.py | tee docs/proofs/fuzz.txt
	$(BIN)/python -m bench.scale | tee docs/proofs/scale.txt
	$(BIN)/pytest -m "not proof and not gpu" -p tests.deploy.through_front -q --no-header \
	  --ignore tests/web/batches tests/web | tee docs/proofs/front.txt

cluster: SHELL := bash -o pipefail
cluster: $(VENV)/.ready-dev
	$(PIP) --editable '.[dev,ray]'
	$(BIN)/pytest -m ray -q --no-header tests/deploy | tee docs/proofs/ray.txt
	$(BIN)/pytest -p tests.deploy.through_serve -q --no-header tests/test_end_to_end.py | tee docs/proofs/serve.txt
	$(BIN)/python -m bench.cluster | grep -v '(raylet)' | tee docs/proofs/cluster.txt
	$(BIN)/python -m bench.cluster_captions | tee docs/proofs/cluster-captions.txt

# The suites of tests/outside/suites.py, each in the environment that tests/outside/requirements.json describes.
outside: SHELL := bash -o pipefail
outside: $(VENV)/.ready-dev
	$(PYTHON) tests/outside/suites.py .venv-outside --server $(BIN)/mmserve | tee docs/proofs/outside.txt

bench: $(VENV)/.ready-dev
	$(BIN)/python -m bench.easy_vqa --questions 1000
	$(BIN)/python -m bench.hit_rate
	$(BIN)/python -m bench.second_tier

tour: $(VENV)/.ready-dev chromium
	@test -n "$$(fc-list :lang=zh)" || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends fonts-droid-fallback >/dev/null; } || \
	  { echo "the tour's pictures need a font for Chinese: install one" >&2; exit 1; }
	$(BIN)/python -m tour

# The page is tested in Debian's Chromium; elsewhere, install Chromium or Chrome yourself and set CHROMIUM to its path.
chromium:
	@test -n "$(CHROMIUM)" || command -v chromium >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  { echo "the page's tests need Chromium: install it, or set CHROMIUM to its path" >&2; exit 1; }

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing mmserve and torch into $(VENV) (several GB, some minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing mmserve, torch and the development tools into $(VENV) (several GB, some minutes the first time)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.ready

lock: $(VENV)/.ready-dev
	$(BIN)/python -m pip freeze --exclude-editable --local | grep -v '@ file' > constraints.txt

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
