# The project's commands; `make` alone lists them. Needs GNU make 3.81 or newer and a POSIX sh.
#
#   PYTHON=  the Python that .venv is created with; without it, the first of those below that is suitable
#   TORCH=   what to install where there is no torch yet; "torch==2.13.0 --index-url ..." picks another build
#   ARGS=    more options for the command that a target runs

# PROMPT reaches Python through the environment exactly as typed: `value` reads it without expanding it, and := keeps
# make from expanding it on export. So quotes, dollars and # survive, in an argument and in a variable.
override PROMPT := $(value PROMPT)
export PROMPT

TORCH = torch==2.13.0
KANDINSKY22 = .venv/bin/kandinsky22
PIP = .venv/bin/python -m pip --disable-pip-version-check
PYTHON_FITS = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
TORCH_FITS = import torch; assert (2, 9) <= tuple(map(int, torch.__version__.split(".")[:2])) < (3, 0)

.PHONY: help run serve studio studio-run test check docs bench train-box

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'such as: make run PROMPT="three red circles over a blue triangle" ARGS="--seed 7"'

run: .venv/.installed ## install what is missing, then paint PROMPT, or something at random
	@if [ -n "$$PROMPT" ]; then $(KANDINSKY22) $(ARGS) -- "$$PROMPT"; else $(KANDINSKY22) $(ARGS); fi

serve: .venv/.installed-serve ## install what is missing, then serve the model in the box over HTTP
	@$(KANDINSKY22) serve $(ARGS)

studio-run: .venv/.installed-serve ## install what is missing, then open the studio in the browser
	@$(KANDINSKY22) studio $(ARGS)

STUDIO = src/kandinsky22/studio/app
studio: .venv/.installed-serve ## build the studio from its source; needs node 20 or newer and npm
	.venv/bin/python -m kandinsky22.server.openapi $(STUDIO)/openapi.json
	cd $(STUDIO) && npm ci --no-audit --no-fund && npm run types && npm run check && npm run build

test: check ## install what is missing, then run the checks, and all tests except the slow ones
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.installed-test ## the checks that take seconds: ruff and mypy
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

docs: .venv/.installed-docs ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict $(ARGS)

bench: .venv/.installed-test ## measure speed side by side with diffusers
	.venv/bin/python benchmarks/speed.py $(ARGS)

train-box: .venv/.installed ## train the model in the box from scratch (hours)
	PATH="$(CURDIR)/.venv/bin:$$PATH" sh runs/train_box.sh $(ARGS)

# A stamp is written after the last step only, and what is installed stays: an interrupted install continues.

.venv/.installed-test: .venv/.installed
	@echo "installing what the tests need"
	@$(PIP) install --quiet --editable '.[test]'
	@touch $@

.venv/.installed-serve: .venv/.installed
	@echo "installing what the server needs"
	@$(PIP) install --quiet --editable '.[serve]'
	@touch $@

.venv/.installed-docs: .venv/.installed
	@echo "installing what the documentation needs"
	@$(PIP) install --quiet --editable '.[docs]'
	@touch $@

.venv/.installed: pyproject.toml $(wildcard hatch_build.py src/kandinsky22/acceleration/kernels.c) | .venv/bin/python
	@echo "installing into .venv (once; a minute or two, more if torch has to be downloaded)"
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
	@.venv/bin/python -c '$(TORCH_FITS)' 2>/dev/null || $(PIP) install $$([ -t 1 ] || echo --quiet) $(TORCH)
	@$(PIP) install --quiet --editable .
	@touch $@

# If the chosen Python already has torch, .venv uses that one: a .pth file puts its folder last on .venv's path. So a
# vendor's build is not replaced and no gigabytes are downloaded twice; unlike --system-site-packages, this also works
# when the chosen Python is an activated virtual environment. The price: .venv also sees what is installed beside that
# torch. pip installs other versions over it where needed, in .venv only. Without torch there, .venv is isolated.

.venv/bin/python:
	@if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; \
	else set -- python3.11 python3.12 python3.13 python3.14 python3 python; fi; \
	for python in "$$@"; do \
	    "$$python" -c '$(PYTHON_FITS)' >/dev/null 2>&1 || continue; \
	    "$$python" -m venv --clear .venv || exit; \
	    "$$python" -c '$(TORCH_FITS); print(torch.__path__[0][:-6])' 2>/dev/null | .venv/bin/python -c \
	        'import sys, site; open(site.getsitepackages()[0] + "/torch_of_base_python.pth", "w").write(sys.stdin.read())'; \
	    exit; \
	done; \
	echo "kandinsky22 needs Python 3.11 to 3.14 with venv$${PYTHON:+, which $$PYTHON is not}: install one" \
	    "(Debian, Ubuntu: sudo apt install python3-venv; macOS: brew install python@3.13)" \
	    "or name yours with PYTHON=/path/to/python." >&2; \
	exit 2
