# make env    .venv with everything; make demo, make test and make lint make it when it is not there
# make demo   train a small detector on generated images, evaluate it, draw its detections;
#             DATA=folder takes images of your own, MINUTES=10 more time
# make test   all tests, those that need a GPU where there is one; ARGS="-m chaos -n0 -s" kills trainings
# make lint   ruff and mypy
# make docs   the documentation, in build/site
# make bench  how fast the slim R50 of configs/shapes trains and infers; BENCH="--workload r50 --precision float16" for a GPU
# make gpu-report  all that waits for a GPU, in ten minutes; GPU_REPORT="--data coco:train.json:images" trains on it too
# make clean  remove build products, caches and what demo and bench wrote; make distclean removes .venv too

PYTHON ?= python3
ARGS ?=
BENCH ?=
DATA ?=
MINUTES ?= $(if $(DATA),10,3)
GPU_REPORT ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLING := $(VENV)/.installing
READY := $(VENV)/.ready
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# builds the two or three packages that come as source as newer pips do, without complaints from older ones
export PIP_USE_PEP517 := 1

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: env demo test lint docs bench gpu-report clean distclean

env: $(READY)

# Threads that wait soon leave their core to others: spinning, beside one other busy process, costs many times the time.
demo: export GOMP_SPINCOUNT := 1000
demo: env
	@data="$(DATA)"
	if [ -z "$$data" ]; then
	    data=output/shapes
	    $(BIN)/python tools/generate_shapes.py $$data
	fi
	$(BIN)/dsrcnn train --data "$$data" --minutes $(MINUTES) --output output/demo
	$(BIN)/dsrcnn visualize detections output/demo --data "$$data" --output output/demo/detections.png
	$(BIN)/dsrcnn visualize stages output/demo --data "$$data" --output output/demo/stages.png
	# Your own images need no test split: the training has evaluated them.
	$(if $(DATA),,$(BIN)/dsrcnn eval output/demo --data "$$data")

# One thread in the commands that tests start, too: test processes share the cores. There is one more of these than cores,
# since some wait for the commands that they start.
test: export OMP_NUM_THREADS := 1
test: env
	@$(BIN)/python -m pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: env
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	echo "open build/site/index.html"

bench: env
	@GOMP_SPINCOUNT=1000 $(BIN)/python benchmarks/speed.py $(BENCH)

gpu-report: env
	@$(BIN)/python benchmarks/gpu_report.py $(GPU_REPORT)

clean:
	@rm -rf build dist output/demo output/shapes output/bench .hypothesis
	find . \( -path ./$(VENV) -o -path ./.git -o -path ./output -o -path ./datasets \) -prune -o \
	    \( -name __pycache__ -o -name '.*_cache' -o -name '*.egg-info' \) -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)

# $(INSTALLING) stays behind when the installation is interrupted, and may then have left a package in part:
# the next run starts afresh. After an ordinary failure (no network, say) the next run continues.
$(READY): setup.py constraints.txt $(wildcard projects/DynamicSparseRCNN/dynamic_sparse_rcnn/detectron2_build/*.py)
	@trap 'exit 130' INT TERM
	failed() { rm -f $(INSTALLING); echo "error: $$1" >&2; exit 1; }
	if [ -e $(INSTALLING) ]; then
	    echo "the last installation was interrupted: starting afresh"
	    rm -rf $(VENV)
	fi
	if [ ! -x $(BIN)/pip ]; then
	    $(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
	        failed "Python 3.10 to 3.13 is needed, '$(PYTHON)' is not one: make env PYTHON=python3.12"
	    echo "1/4 creating $(VENV) with $$($(PYTHON) --version)"
	    $(PYTHON) -m venv --clear $(VENV) || failed "venv does not work: on Debian, apt install python3-venv"
	fi
	touch $(INSTALLING)
	echo "2/4 installing torch and the other packages (several GB, takes minutes)"
	$(PIP_INSTALL) --editable '.[dev]' || failed "the packages could not be installed, pip says why above"
	echo "3/4 checking OpenCV"
	if ! $(BIN)/python -c 'import cv2' 2>/dev/null; then
	    echo "    opencv-python needs libraries of a desktop (libGL): using opencv-python-headless instead"
	    $(BIN)/python -m pip uninstall --quiet --yes opencv-python opencv-python-headless
	    $(PIP_INSTALL) opencv-python-headless && $(BIN)/python -c 'import cv2' || failed "OpenCV cannot be used"
	fi
	echo "4/4 installing detectron2"
	$(BIN)/python tools/install_detectron2.py --constraint constraints.txt || failed "detectron2 is missing"
	$(BIN)/python -c 'import dynamic_sparse_rcnn' || failed "the package was installed, but cannot be imported"
	rm $(INSTALLING)
	touch $(READY)
	echo "ready: $(BIN)/python"
