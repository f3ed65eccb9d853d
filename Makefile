# make book · make check · make test · make help.   Another Python: make book PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install book pdf student lint check test notebooks data bench study gpu sass coefficients picture lines colab clean

# Threads that wait give way to other programs. OpenMP's normally spin, which makes everything twenty to fifty times slower
# on a busy machine. What measures speed (bench, study, gpu) runs with a machine of its own, and keeps OpenMP's default.
check test notebooks: export OMP_WAIT_POLICY ?= passive

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## a virtual environment in .venv with everything in it

# The versions of constraints.txt; anew only when one of the two files has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.10 to 3.13 is needed; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@

book: $(INSTALLED) ## build the book from the stored outputs, warnings are errors
	$(BIN)/jupyter-book build . --all --warningiserror --keep-going --quiet
	@echo "The book: _build/html/index.html"

pdf: book ## print the whole book as one PDF, build/the-kat-book.pdf; needs Chromium
	$(BIN)/python book/_ext/pdf.py

student: ## the notebooks without their solutions, for class, in build/student
	$(PYTHON) book/_ext/notebooks.py student

lint: $(INSTALLED) ## ruff: errors, encodings and layout; mypy: the package's types
	$(BIN)/ruff check
	$(BIN)/ruff check --preview --select PLW1514
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: $(INSTALLED) ## the fast tests, within three minutes, without the built book
	$(BIN)/python -m pytest --quiet -n 2 --dist loadfile -m "not slow and not book" tests/unit tests/project

test: lint book ## run everything that the project checks: lint, all tests with coverage, the built book, the notebooks
	$(BIN)/python -m pytest --quiet -n 2 --dist loadfile -m "not weekly" --cov --cov-report=term --cov-fail-under=92
	$(BIN)/python -m pytest --quiet --nbval-lax --nbval-current-env --nbval-cell-timeout=3600 notebooks

notebooks: $(INSTALLED) ## run all notebooks and store their outputs; one: make notebooks ONLY=01
	$(BIN)/python book/_ext/notebooks.py execute $(ONLY)

data: $(INSTALLED) ## download CIFAR-10 into the cache, check it
	$(BIN)/python -c 'from katlib import load_cifar10; print(load_cifar10())'

bench: $(INSTALLED) ## time the kernel and the models, keep the figures in results/
	$(BIN)/python benchmarks/kernel.py
	$(BIN)/python benchmarks/model.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/scale.py

study: $(INSTALLED) ## train what is missing of chapter 13's runs; all of it takes two and a half hours on two CPU cores
	$(BIN)/python benchmarks/study.py lr
	$(BIN)/python benchmarks/study.py run
	$(BIN)/python benchmarks/study.py run --again
	$(BIN)/python benchmarks/study.py cost

gpu: $(INSTALLED) ## on a machine with a GPU: its tests, the memory and race checker where there is one, all benchmarks
	$(BIN)/python benchmarks/gpu.py

sass: $(INSTALLED) ## the CUDA kernel's registers, spills and instructions per element, for all GPUs, without one
	$(BIN)/python -m katlib.cuda.sass

coefficients: $(INSTALLED) ## fit the starting points of the rational functions anew
	$(BIN)/python -c 'from katlib.fit import main; main()'

picture: $(INSTALLED) ## draw the README's picture from the stored run, and the book's mark from the trained model
	$(BIN)/python book/_ext/notebooks.py picture
	$(BIN)/python book/_ext/pictures.py

lines: ## count the lines of the package, and of the part that one reads in an evening
	$(PYTHON) book/_ext/lines.py

colab: ## take the repository's address from the git remote; notebooks then install katlib from it
	$(PYTHON) book/_ext/notebooks.py colab

clean: ## remove what was built; the environment and the data stay
	rm -rf _build build runs .pytest_cache .ruff_cache .mypy_cache .coverage .coverage.*
