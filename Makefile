# One command per habit; continuous integration runs the same.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# Run pytest with options and ARGS; that nothing was selected (5) is no failure.
pytest = $(BIN)/python -m pytest $(1) $(ARGS) || test $$? -eq 5

.PHONY: run test test-all check export bench train sbom audit deploy-tools environment clean

run: environment  ## server and page; options: make run ARGS="--page-port 7861"
	@$(BIN)/captioner up $(ARGS)

test: environment check  ## what must hold at every commit, about 13 minutes on two idle cores
	@$(PYTHON) scripts/environment.py --venv $(VENV) --system
	@$(call pytest,-n 3 --dist loadfile -m "not exhaustive and not alone")
	@$(call pytest,-m "alone and not exhaustive")

test-all: environment check  ## everything, within 45 minutes: published dimensions, every kill step, Ray, long benchmarks
	@$(PYTHON) scripts/environment.py --venv $(VENV) --system
	@$(call pytest,-n 3 --dist loadfile -m "not alone")
	@$(call pytest,-m alone)

check: environment  ## style and types
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy

export: environment  ## publish a model: make export ARGS="MODEL --revision COMMIT"
	@$(BIN)/python -m export $(ARGS)

bench: environment  ## captions per second and time to first text of a running server
	@$(BIN)/captioner bench $(ARGS)

train: environment  ## the embedded model anew, which takes hours: make train DATA=DIR
	$(BIN)/python -m training --data $(DATA) --out build/training/first --resume
	$(BIN)/python -m training.self_critical --data $(DATA) --model build/training/first --out captioner/embedded
	$(BIN)/python -m training.evaluate --data $(DATA) --card

sbom: environment  ## what is installed, as CycloneDX JSON
	@mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/captioner.cdx.json $(BIN)/python

audit: environment  ## known vulnerabilities of the pinned packages, where PyPI's data can be reached
	@$(BIN)/python scripts/audit.py

deploy-tools:  ## the programs that check deploy/, without which those tests are skipped: helm, envoy, docker-compose, promtool
	@$(PYTHON) scripts/deploy_tools.py

environment:
	@$(PYTHON) scripts/environment.py --venv $(VENV)

clean:  ## the environment and everything that was built; published models stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
