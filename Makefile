# trunkline: set-up, demo and tests. Needs Python 3.11 or newer and nothing else.
#
#   make setup   create the environment in .venv from uv.lock
#   make demo    train a small detector on synthetic images, print its COCO metrics, draw its predictions
#   make demo TASK=segmentation    the same for a segmenter: its mIoU, its masks
#   make demo TASK=scans           the same for synthetic CT volumes in NIfTI: Dice, distances in mm, label volumes
#   make test    run the tests but those that take minutes; ARGS='tests/heads -x' goes to pytest
#   make test-slow  run those that take minutes
#   make coverage   as make test, and measure which lines they run
#   make types   check the types
#   make bench   measure speed and memory beside the peers, and rewrite docs/performance.md; half an hour on two cores
#   make gpu     test and measure on a GPU, in nine minutes; needs no network (PYTHON=... names its Python)
#   make gpu-bundle   fetch what `make gpu` needs on a bare machine into benchmarks/gpu/bundle, 60 MiB at most
#   make fuzz    give odd files to every reader, for ten minutes; SECONDS=60 TARGET='zip nifti' says otherwise
#   make lint    check the style and the format
#   make hooks   run pre-commit before every commit

PYTHON ?= python3
BIN := .venv/bin
TASK := detection
DEMO := demo/$(TASK)
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo $(BIN)/uv)
# Threads that wait sleep rather than spin: a tenth slower on a quiet machine, many times faster on a shared one.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-slow coverage types lint hooks bench gpu gpu-bundle fuzz

setup: $(BIN)/.ready

$(BIN)/.ready: uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; name one: make setup PYTHON=python3.12"; exit 1; }
	@$(UV) --version >/dev/null 2>&1 || { $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	UV_PROJECT_ENVIRONMENT=.venv $(UV) sync --frozen --inexact --python $(PYTHON)
	@touch $@

DEMO_CONFIG_detection := detection/faster_rcnn_r18_fpn_demo
DEMO_CONFIG_segmentation := segmentation/fcn_r18_demo
DEMO_CONFIG_scans := scans/unet_3d_demo

demo: setup
	@test -n "$(DEMO_CONFIG_$(TASK))" || { \
	  echo "make demo has no TASK=$(TASK): use TASK=detection, TASK=segmentation or TASK=scans"; exit 1; }
	rm -rf $(DEMO)
	$(BIN)/trunkline sample $(TASK) $(DEMO)/data
	$(BIN)/trunkline fit --config $(DEMO_CONFIG_$(TASK)) \
	  --data.root $(DEMO)/data --trainer.default_root_dir $(DEMO)/run
	@# Distances in mm take longer than fit wants to spend on them.
	@test $(TASK) != scans || $(BIN)/trunkline validate --trainer.default_root_dir $(DEMO)/validation \
	  --ckpt_path $(DEMO)/run/lightning_logs/version_0/checkpoints/last.ckpt
	$(BIN)/trunkline predict --ckpt_path $(DEMO)/run/lightning_logs/version_0/checkpoints/last.ckpt \
	  --data.predict $(DEMO)/data/images/val --output.folder $(DEMO)/predictions --trainer.logger false

# By whole files, whose fixtures are made once.
PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
QUICK = $(PYTEST) -m "not slow" $(ARGS)
test: setup
	$(QUICK)

test-slow: setup
	$(PYTEST) -m "slow and not forks" $(ARGS) || test $$? -eq 5
	@# In processes that have trained nothing themselves; 5: there are none among ARGS.
	$(PYTEST) -m "slow and forks" $(ARGS) || test $$? -eq 5

# In percent of lines and branches, all of these tests together.
MINIMUM := 90
coverage: setup
	$(QUICK) --cov --cov-fail-under=$(MINIMUM)

# One after the other: each wants the machine for itself.
BENCHMARKS := counts_host speed_detection speed_trunks speed_segmentation speed_scans speed_data speed_fit \
	speed_evaluation memory_annotations growth
bench: setup
	@for script in $(BENCHMARKS); do \
	  echo "== benchmarks/$$script.py"; $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/report.py

# Fails with the path of an input that lets a reader raise what it must not, hang, or take too much memory.
SECONDS := 600
fuzz: setup
	$(BIN)/python tests/fuzz/campaign.py --seconds $(SECONDS) $(if $(TARGET),--target $(TARGET)) $(ARGS)

# Neither needs the environment of `make setup`.
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu/run.sh $(ARGS)

gpu-bundle:
	$(PYTHON) benchmarks/gpu/bundle.py

# The checker has to see this folder under the name of the package.
types: setup
	@mkdir -p .mypy_cache/root && ln -sfn ../.. .mypy_cache/root/trunkline
	cd .mypy_cache/root && ../../$(BIN)/mypy --config-file ../../pyproject.toml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

hooks: setup
	$(BIN)/pre-commit install
