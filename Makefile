# make toy     set up, then train the tiny model        make toy ARGS="train.steps=50"
# make test    set up, then run the quick tests, two files at a time   make test ARGS="tests/parallel"
# make test-all  the slow tests as well
# make test-layouts  by hand, an hour or two: a step on all layouts, schedules and options, as in docs/pipeline.md
# make test-resume  by hand: checkpoints of each large layout read by each other one, as in docs/pipeline.md
# make test-media-used  by hand, minutes: recipe=toy_multimodal, then its answers with right and with shuffled media
# make test-routing  by hand, 0.8 GB and minutes: the model of docs/captions_routing.md trained again, and compared
# make test-peers  by hand, 5 GB and minutes: exports in mlx-lm, mistral.rs, vLLM and LMDeploy, and OpenCompass's scorers
# make lint    ruff, mypy, hadolint, and the words of docs/words.md
# make bench   bench-step: the training step against Hugging Face and its own matmuls, one process
#              bench-moe: the expert-parallel layer against Megatron-core's dispatcher, eight processes
#              bench-data: starting on six trillion tokens and reading packs of them, against Megatron-core
#              bench-towers: images and the vision tower against transformers, memory of long signals, patches of ranks
#              bench-muon: the toy's step with Muon against AdamW's
#              bench-upcycle: octavo upcycle against a script that moves and hashes the same bytes
# make bench-pipeline  by hand, on idle cores: steps of a pipeline against the time that its schedule takes on paper
# make bench-peaks  peak bytes of a rank for even and uneven routers, predicted and counted on eight processes
# make bench-rl  by hand, minutes: steps of reinforcement learning against TRL's GRPO trainer, after setting up its environment
# make bench-gpu  one GPU: the 1T model's experts and layers beside torch's and Transformer Engine's, then recipe=toy_gpu
# make setup   only install what test, lint and bench need; setup-toy: what toy needs
#
# PYTHON=...       the Python to build on, 3.11 or newer. If it can import torch, that torch is kept.
# TORCH_INDEX=...  an extra package index for torch, such as PyTorch's own index of CPU wheels.

PYTHON      ?= python3
TORCH_INDEX ?=
ARGS        ?=

VENV := .venv
PY   := $(VENV)/bin/python
# Two levels, each with its stamp, so that a newcomer's `make toy` does not wait for linters.
TOY  := $(VENV)/.ready-toy
DEV  := $(VENV)/.ready-dev
# The peer of the contrastive losses. Tests read its file of losses alone: the package needs torchvision, whose build for
# another torch would break transformers' imports.
OPEN_CLIP := open_clip_torch==3.3.0
# Recorded signals of data=toy_multimodal, read as files: what the package needs excludes our pandas.
AEON := aeon==1.6.0

.PHONY: toy test test-all test-layouts test-resume test-media-used test-peers test-routing lint bench bench-peaks bench-step bench-moe bench-upcycle bench-data bench-towers bench-muon bench-pipeline bench-rl bench-gpu setup setup-toy clean
.DEFAULT_GOAL := toy

# Ctrl-C: octavo has saved and said so (130); make, which gets the signal too, need not report an error.
toy: $(TOY)
	@trap : INT; $(VENV)/bin/octavo train recipe=toy $(ARGS) || { code=$$?; [ $$code -eq 130 ] || exit $$code; }

# A file stays on one worker: its tests share what they made. Not in xdist's order, which starts the few long ones last.
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(DEV)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(DEV)
	$(PYTEST) $(ARGS)

test-layouts: $(DEV)
	$(PY) -m tests.trainer.stages.table $(ARGS)

test-resume: $(DEV)
	$(PY) -m tests.trainer.stages.resuming $(ARGS)

test-media-used: $(DEV)
	$(VENV)/bin/octavo train recipe=toy_multimodal run.dir=runs/media-used $(ARGS)
	$(PY) -m tests.bench.media_used runs/media-used

test-peers: $(DEV)
	$(PY) -m tests.trainer.weights.peers.environments
	$(PY) -m pytest -n 0 tests/trainer/weights/peers tests/trainer/evaluation/scorers $(ARGS)

test-routing: $(DEV)
	$(PY) -m trainer.corpora.captions.routing download .cache/routing-wheels
	$(PY) -m trainer.corpora.captions.routing train .cache/routing-wheels .cache/subjects.npz
	$(PY) -m tests.trainer.corpora.captions.routing.retrained .cache/subjects.npz

# PATH: where torch came from an activated environment, its ruff and hadolint may be the ones in use.
lint: export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
lint: $(DEV)
	ruff check .
	$(PY) -m mypy
	$(PY) .ci/words.py
	hadolint docker/Dockerfile.cpu docker/Dockerfile.gpu

bench: bench-step bench-moe bench-muon bench-upcycle bench-data bench-towers

bench-step: $(DEV)
	$(PY) tests/bench/step.py $(ARGS)

bench-moe: $(DEV)
	$(PY) -m tests.bench.moe_layer $(ARGS)

bench-muon: $(DEV)
	$(PY) -m tests.bench.muon step $(ARGS)

bench-upcycle: $(DEV)
	$(PY) -m tests.bench.upcycle $(ARGS)

bench-pipeline: $(DEV)
	$(PY) -m tests.bench.pipeline $(ARGS)

bench-data: $(DEV)
	$(PY) -m tests.bench.data $(ARGS)

bench-towers: $(DEV)
	$(PY) -m tests.bench.towers $(ARGS)
	$(PY) -m tests.bench.balance

bench-peaks: $(DEV)
	$(PY) -m tests.bench.peaks $(ARGS)

bench-rl: $(DEV)
	$(PY) -m tests.trainer.weights.peers.environments trl
	$(PY) -m tests.bench.rl_trl $(ARGS)

bench-gpu: $(DEV)
	$(PY) -m tests.bench.gpu $(ARGS)

setup: $(DEV)

setup-toy: $(TOY)

$(TOY): pyproject.toml constraints.txt
	@$(call install,toy$(comma)data)
	@touch $@

$(DEV): pyproject.toml constraints.txt
	@$(call install,toy$(comma)science$(comma)media$(comma)signals$(comma)serve$(comma)evaluate$(comma)rewards$(comma)captions$(comma)test$(comma)bench$(comma)wandb$(comma)deepspeed)
	@"$(PY)" -m pip install --quiet --disable-pip-version-check --no-deps "$(OPEN_CLIP)" "$(AEON)"
	@touch $@ $(TOY)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# Prints the version of PYTHON's torch; nothing if it has none or is this environment itself.
define FIND_TORCH
import importlib.metadata, os, sys
if os.path.realpath(sys.prefix) == os.path.realpath("$(VENV)"):
    sys.exit()
try:
    import torch
except ImportError:
    sys.exit()
print(importlib.metadata.version("torch"))
if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 11):
    sys.exit(f"{sys.executable} has torch {torch.__version__}; Octavo needs 2.11 or newer. Upgrade it there, or name a "
             "Python without torch (make PYTHON=...), which then gets its own.")
endef

# --system-site-packages shows a venv the packages of the base Python, never those of another venv: list these in a .pth.
define LINK_PARENT
import pathlib, subprocess, sys, sysconfig
if sys.prefix != sys.base_prefix:
    site = subprocess.check_output(["$(PY)", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True)
    paths = sysconfig.get_paths()
    pathlib.Path(site.strip(), "parent_environment.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
endef
export FIND_TORCH LINK_PARENT
comma := ,

# $(call install,EXTRAS): one shell script. An existing environment that works is kept and brought up to date.
define install
set -e; \
command -v "$(PYTHON)" >/dev/null || { echo "'$(PYTHON)' was not found. Octavo needs Python 3.11 or newer: install one or name it, as in make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }; \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1); Octavo needs 3.11 or newer. Name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
torch=$$("$(PYTHON)" -c "$$FIND_TORCH"); \
if ! "$(PY)" -m pip --version >/dev/null 2>&1; then \
    "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments (no ensurepip). On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
    echo "setting up $(VENV) with $$("$(PYTHON)" -V)$${torch:+ and the torch $$torch it has}"; \
    "$(PYTHON)" -m venv --clear $${torch:+--system-site-packages} $(VENV); \
    if [ -n "$$torch" ]; then "$(PYTHON)" -c "$$LINK_PARENT"; fi; \
fi; \
if [ -n "$$torch" ]; then \
    { grep -vE '^(torch|triton)==' constraints.txt; echo "torch==$$torch"; } >$(VENV)/constraints.txt; \
else \
    cp constraints.txt $(VENV)/constraints.txt; \
fi; \
echo "installing octavo[$(1)]: the first time takes a few minutes"; \
"$(PY)" -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") \
    -c $(VENV)/constraints.txt -e ".[$(1)]"
endef
