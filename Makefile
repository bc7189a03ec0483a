# Commands of the project. `make` lists the commands, and each command installs the packages that it needs.
# The commands need Python >= 3.11, make and a package index. The package installer uv is installed into .tools/.

PYTHON  ?= python3
DATA    ?=
RUN     ?=
ADDRESS ?= 127.0.0.1:50051
CLASSES ?=
ROWS    ?= 4000

UV   := .tools/bin/uv
VENV := .venv/bin
DISTRIBUTIONS := protos client service trainer

# uv does not read the configuration of pip. Therefore uv gets the package index of pip, unless UV_DEFAULT_INDEX is set.
ifeq ($(origin UV_DEFAULT_INDEX),undefined)
PIP_INDEX := $(or $(PIP_INDEX_URL),$(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null))
ifneq ($(PIP_INDEX),)
export UV_DEFAULT_INDEX := $(PIP_INDEX)
endif
endif

# The tests start many Python processes. Without cached bytecode, each of them would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve train models test test-slow test-lowest test-latest test-grpcio lint examples k8s image-test dist-test chaos cluster-sim fuzz bench bench-gpu image sbom dist docs release protos locks clean

help: ## list the commands
	@awk -F':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use
demo: .venv/.done ## run the whole job: drawings, CNN, ONNX, service, scores, report; DATA=FOLDER takes your drawings
	@$(VENV)/python demo/demo.py --run "$(or $(RUN),runs/demo)" $(if $(DATA),--data "$(DATA)") $(if $(RESTART),--restart)

serve: .tools/serve/.done ## serve the shipped models on ADDRESS (127.0.0.1:50051)
	.tools/serve/bin/sketchbatch-serve --model models --default-model bear-cat-dog --address $(ADDRESS)

DEFAULT_CLASSES := bear,cat,dog
TRAIN_FLAGS = $(strip $(if $(DATA),--data "$(DATA)") $(if $(CLASSES),--classes "$(CLASSES)") \
  $(if $(filter all,$(ROWS))$(and $(DATA),$(filter file,$(origin ROWS))),,--rows "$(ROWS)") $(if $(RECIPE),--recipe "$(RECIPE)") $(if $(EPOCHS),--epochs "$(EPOCHS)") \
  $(if $(START_FROM),--start-from "$(START_FROM)") $(if $(RESTART),--restart) $(if $(IGNORE_OTHERS),--ignore-others) $(if $(SKIP_MALFORMED),--skip-malformed))

train: .venv/.done ## train CLASSES (bear,cat,dog) into RUN (runs/train), from ROWS (4000) of each from Google's bucket;
train: ## or from DATA: folders LABEL/ of pictures, or files LABEL.npy; also RECIPE=article START_FROM=RUN
train: ## RESTART=1 (as --restart) IGNORE_OTHERS=1 (as --ignore-others) SKIP_MALFORMED=1
	$(if $(DATA),,$(VENV)/sketchbatch-train fetch --classes "$(or $(CLASSES),$(DEFAULT_CLASSES))" --rows "$(ROWS)")
	$(VENV)/sketchbatch-train train --run "$(or $(RUN),runs/train)" $(TRAIN_FLAGS)
	$(VENV)/sketchbatch-train export --run "$(or $(RUN),runs/train)"
	@command -v sketchbatch-train >/dev/null || echo "before the commands above, run: . $(VENV)/activate"

RUNS    := runs/models
FOLDS   := fold-1 fold-2 fold-3 fold-4 fold-5
SHIPPED := models/bear-cat-dog/2 models/animals-10/2 models/quickdraw-345/2
THREE   := bear,cat,dog
TEN     := bear,cat,dog,duck,fish,frog,lion,monkey,rabbit,sheep
comma   := ,
OTHERS   = $$(ls $(DATA)/numpy_bitmap | sed "s/\.npy$$//" | grep -vxE "$(subst $(comma),|,$(TEN))" | paste -sd,)
TRAIN    = $(VENV)/sketchbatch-train train --run $(@D) --source "Quick, Draw! drawings by Google (CC BY 4.0)" \
  --data "$(or $(DATA),$(error name the folder of drawings: make models DATA=FOLDER))"
AVERAGE  = $(VENV)/sketchbatch-train average --run $(@D) $(^:%/model.keras=--of %)

models: $(SHIPPED:%=%/model.onnx) ## train the shipped models from the drawings in DATA: three hours on 2 cores

# The starting point learns the classes that animals-10 lacks, so it knows no drawing of the folds below. The second
# training has the weights of the first one at the beginning, and the first one as teacher.
$(RUNS)/compact-335/model.keras: | .venv/.done
	$(TRAIN) --name compact-335 --classes "$(OTHERS)" --recipe compact
$(RUNS)/compact-335-again/model.keras: $(RUNS)/compact-335/model.keras
	$(TRAIN) --name compact-335-again --classes "$(OTHERS)" --recipe again --start-from $(<D) --teacher $(<D)
# `python -m benchmarks cross-validation` also compares the network light, which needs a starting point of its own.
$(RUNS)/light-335/model.keras: | .venv/.done
	$(TRAIN) --name light-335 --classes "$(OTHERS)" --recipe compact --network light
$(RUNS)/light-335-again/model.keras: $(RUNS)/light-335/model.keras
	$(TRAIN) --name light-335-again --classes "$(OTHERS)" --recipe again --network light --start-from $(<D) --teacher $(<D)
$(RUNS)/quickdraw-345/model.keras: $(RUNS)/compact-335-again/model.keras
	$(TRAIN) --name quickdraw-345 --classes all --recipe again --start-from $(<D)

# FOLDED(NAME, FOLDS, CLASSES): the run NAME is the average of three seeds, trained on all drawings. Five folds of the same
# recipe judge it; they start from the weights of 335 classes. A run of a fold ends with fold and seed:
# cross-validation/FOLDS/fold-1/seed-0.
define FOLDED
.PRECIOUS: $(addprefix $(RUNS)/,$(1)-%/model.keras cross-validation/$(2)/fold-%/model.keras averages/$(2)/%/model.keras)
$(RUNS)/$(1)-%/model.keras: $(RUNS)/quickdraw-345/model.keras
	$$(TRAIN) --name $(1) --classes $(3) --recipe finetune --start-from $$(<D) --hold-out none --seed $$*
$(RUNS)/$(1)/model.keras: $(foreach seed,0 1 2,$(RUNS)/$(1)-$(seed)/model.keras)
	$$(AVERAGE)
$(RUNS)/cross-validation/$(2)/fold-%/model.keras: $(RUNS)/compact-335-again/model.keras
	$$(TRAIN) --name $(2) --classes $(3) --recipe finetune --start-from $$(<D) \
	  --hold-out $$(subst /seed-,/5 --seed ,$$*)
$(RUNS)/averages/$(2)/%/model.keras: $(foreach seed,0 1 2,$(RUNS)/cross-validation/$(2)/%/seed-$(seed)/model.keras)
	$$(AVERAGE)
$(RUNS)/$(1)/out-of-fold.npz: $(RUNS)/$(1)/model.keras $(RUNS)/quickdraw-345/model.keras $(FOLDS:%=$(RUNS)/averages/$(2)/%/model.keras)
	$(VENV)/sketchbatch-train cross-validate --run $$(@D) --unknown $(RUNS)/quickdraw-345/test $(FOLDS:%=--of $(RUNS)/averages/$(2)/%)
models/$(1)/2/model.onnx: $(RUNS)/$(1)/model.keras $(RUNS)/$(1)/out-of-fold.npz
endef
$(eval $(call FOLDED,bear-cat-dog,compact,$(THREE)))
$(eval $(call FOLDED,animals-10,animals-10,$(TEN)))

models/quickdraw-345/2/model.onnx: $(RUNS)/quickdraw-345/model.keras
$(SHIPPED:%=%/model.onnx):
	$(VENV)/sketchbatch-train export --run $(<D) --version $(notdir $(@D)) --variant float16 --variant int8 \
	  --licence "Apache-2.0; learned from Quick, Draw! drawings by Google, CC BY 4.0"
	mkdir -p $(@D) && cp $(<D)/model.onnx $@.partial && mv $@.partial $@

$(RUNS)/article/model.onnx: | .venv/.done
	$(TRAIN) --name article --classes $(THREE) --recipe article
	$(VENV)/sketchbatch-train export --run $(@D)

##@ Check
# pytest runs in two processes, because most tests wait for other processes, and not in more, because training uses both
# cores. All tests of a file run in the same process, and so do all files of tests/trainer (tests/file_order.py).
TESTS ?= -n 3 --dist loadfile --no-loadscope-reorder

test: lint .tools/openinference/.done ## lint, then run the tests; `make k8s`, `make image-test` and `make dist-test` are the other checks of CI
	$(VENV)/pytest $(TESTS)

test-slow: .venv/.done ## run the tests that train, measure or repeat faults for long; before a release
	$(VENV)/pytest -m slow $(TESTS)

# test-lowest installs the lowest versions of direct dependencies that the distributions allow. test-latest installs the
# newest versions of all dependencies. Both use no lock file, and run only tests that need neither TensorFlow nor the
# trainer. For test-latest, PYTHON may name a newer Python.
RANGE_TESTS ?= tests/contract --ignore=tests/contract/test_distributions.py tests/service \
  tests/client/test_client.py tests/client/test_async_client.py tests/client/test_demo_page.py \
  tests/integration/test_serving.py tests/integration/test_security.py tests/integration/test_transport_choice.py

test-lowest: RESOLUTION := lowest-direct
test-latest: RESOLUTION := highest
test-lowest test-latest: $(UV) ## test the lowest, or the newest, versions of all dependencies; before a release
	$(UV) venv --quiet --clear --python $(PYTHON) .tools/$@
	$(UV) pip install --quiet --python .tools/$@/bin/python --resolution $(RESOLUTION) -e protos -e "client[demo]" -e "service[cpu,traces]"
	$(UV) pip install --quiet --python .tools/$@/bin/python -e protos -e "client[demo]" -e "service[cpu,traces]" --group dev onnx pandas
	$(UV) pip list --quiet --python .tools/$@/bin/python 2>/dev/null | grep -E "^(grpcio|numpy|onnxruntime|protobuf) "
	.tools/$@/bin/pytest $(TESTS) $(RANGE_TESTS)

# Runs the contract tests with each version of grpcio in GRPCIO. Add the versions that pass to CORE_GRPCIO in
# transport/selection.py.
test-grpcio: $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .tools/$@
	$(UV) pip install --quiet --python .tools/$@/bin/python -e protos -e "client[demo]" -e "service[cpu,traces]" --group dev onnx
	@for version in $(GRPCIO); do \
	  $(UV) pip install --quiet --python .tools/$@/bin/python grpcio==$$version "grpcio-health-checking<=$$version" \
	    "grpcio-reflection<=$$version" && \
	  if .tools/$@/bin/pytest -q $(TESTS) tests/contract/test_transport*.py tests/contract/test_status_table.py \
	    tests/contract/test_openinference_status.py >.tools/$@/$$version.log 2>&1; then echo "$$version passed"; \
	  else echo "$$version FAILED: .tools/$@/$$version.log"; fi; \
	done

lint: .venv/.done .tools/protos/.done .tools/image/.done ## ruff, mypy strict, import layers, banned words, stale stubs, hadolint, actionlint
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/mypy tools
	$(VENV)/lint-imports
	$(VENV)/codespell
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(call generate,"$$out") && \
	for stub in $$(cd "$$out" && find . -type f); do \
	  cmp -s "$$out/$$stub" "protos/$$stub" || { echo "stale: protos/$${stub#./}; run 'make protos'"; exit 1; }; \
	done
	.tools/image/bin/hadolint Dockerfile.gpu
	.tools/image/bin/actionlint .github/workflows/*.yml

# An example whose tools or packages are absent is left out, and its tests are skipped. A failed installation from a
# registry that answers, and a failed compilation, end the command.
NODE_PACKAGES := examples/node/node_modules/.package-lock.json
CPP_BUILD     := examples/cpp/build

examples: ## install the packages of the Node example and build the C++ example, for their tests in `make test`
	@if ! { command -v node && command -v npm; } >/dev/null; then \
	  echo "the Node example is left out: node or npm is absent"; \
	elif [ $(NODE_PACKAGES) -nt examples/node/package-lock.json ]; then :; \
	elif ! (cd examples/node && npm view --fetch-retries=0 @grpc/grpc-js name) >/dev/null 2>&1; then \
	  echo "the Node example is left out: no package registry answers"; \
	else cd examples/node && npm ci --ignore-scripts --no-audit --no-fund; fi
	@if ! cmake -DCMAKE_BUILD_TYPE=Release -S examples/cpp -B $(CPP_BUILD) >/dev/null 2>&1; then \
	  echo "the C++ example is left out: CMake, a compiler or libgrpc++-dev is absent (examples/cpp/CMakeLists.txt)"; \
	else cmake --build $(CPP_BUILD); fi

k8s: .venv/.done .tools/k8s/.done ## check the Kubernetes manifests: kustomize, schemas of three versions, checkov, our policies
	$(VENV)/pytest -m k8s tests/deploy

image-test: .venv/.done .tools/image/.done .tools/k8s/.done ## build the image (EXTRA=cpu or gpu) and run it as Kubernetes would; needs Docker
	EXTRA=$(or $(EXTRA),cpu) $(VENV)/pytest -m image tests/image

dist-test: dist .venv/.done ## build the wheels, install them into an empty environment, and serve, score and evaluate
	$(VENV)/pytest -m wheels tests/wheels

chaos: .venv/.done ## overload, kills, restarts, lost connections, full disks, balancers, cluster-sim: half an hour
	$(VENV)/pytest -m "chaos or balancing" tests/chaos tests/balancing
	KILLS=$(or $(KILLS),50) $(VENV)/pytest tests/integration/test_kills.py
	$(MAKE) cluster-sim

cluster-sim: .venv/.done .tools/openinference/.done ## roll out, drain and scale a simulated cluster under load: 17 minutes
	$(VENV)/python tests/cluster $(if $(EVENTS),--events "$(EVENTS)") $(if $(OUTPUT),--output "$(OUTPUT)")

fuzz: .venv/.done ## send INPUTS (1000000) hostile inputs of SEED (1) to every parser, RPC and port; TARGETS=npy,classify
	$(VENV)/python tests/fuzz/fuzz.py --inputs $(or $(INPUTS),1000000) --seed $(or $(SEED),1) \
	  --output benchmarks/results/$(shell date -u +%F)-fuzz.json $(if $(TARGETS),--targets $(TARGETS))

##@ Measure
bench: .venv/.done ## compare with ONNX Runtime, a plain server and empty servers; others: .venv/bin/python -m benchmarks
	$(VENV)/python -m benchmarks bench $(BENCH)

# bench-gpu needs no package index and no installed packages of this project (docs/gpu.md).
PROVIDER ?= cuda
bench-gpu: ## measure CUDA in 8 minutes; needs a GPU, and PYTHON with onnxruntime-gpu
	$(PYTHON) benchmarks/gpu.py --provider $(PROVIDER) $(if $(OUTPUT),--output "$(OUTPUT)")

##@ Build
# EXTRA selects the image: gpu (CUDA 13) or cpu, as in `pip install sketchbatch-service[cpu]`, or client. The page
# docs/container.md describes all variables of the image.
DOCKER       ?= docker
EXTRA        ?=
IMAGE        ?= sketchbatch:$(or $(EXTRA),gpu)
BASE_IMAGE   ?=
BUILD_FLAGS  ?=
IMAGE_PYTHON ?= 3.12

image: export PIP_INDEX_URL := $(or $(PIP_INDEX),$(UV_DEFAULT_INDEX))
image: ## build the image: EXTRA=gpu (default), cpu or client; IMAGE=NAME BASE_IMAGE=DEBIAN BUILD_FLAGS="..."
	$(DOCKER) build -f Dockerfile.gpu -t $(IMAGE) --build-arg PIP_INDEX_URL \
	  $(if $(filter client,$(EXTRA)),--target client,--build-arg EXTRA=$(or $(EXTRA),gpu)) \
	  --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' service/pyproject.toml) \
	  --build-arg REVISION=$(shell git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown) \
	  $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(BUILD_FLAGS) .

# Installs the locked packages for the Python version of the default base image, without cuFFT, as Dockerfile.gpu does.
SBOM_PIP = $(UV) pip install --quiet --no-deps --python .tools/sbom/bin/python --python-version $(IMAGE_PYTHON) \
  --target $$(echo .tools/sbom/lib/python3.*/site-packages)

sbom: .tools/image/.done ## write the bill of materials of the image (EXTRA=gpu or cpu), CycloneDX, into dist/
	@rm -rf .tools/sbom dist/wheels && $(UV) venv --quiet --python $(PYTHON) .tools/sbom
	@for distribution in protos service; do $(UV) build --quiet --wheel --no-build-isolation --python .tools/image/bin/python -o dist/wheels $$distribution || exit; done
	@awk '/^[^ ]/ {keep = !/^nvidia-cufft/} keep' locks/service-$(or $(EXTRA),gpu).txt >.tools/sbom/lock.txt
	@$(SBOM_PIP) --python-platform x86_64-manylinux_2_28 --only-binary :all: --require-hashes -r .tools/sbom/lock.txt
	@$(SBOM_PIP) --no-index --find-links dist/wheels sketchbatch-protos sketchbatch-service
	.tools/image/bin/cyclonedx-py environment --gather-license-texts --output-reproducible --pyproject service/pyproject.toml \
	  -o dist/sbom-$(or $(EXTRA),gpu).cdx.json .tools/sbom

# Each wheel is built from the sdist, so that the sdist is complete. The packages of `make sbom` and of bench-gpu have
# folders of their own in dist/.
dist: .tools/dist/.done ## build sdists and wheels of the four distributions into dist/, and check them with twine
	@rm -f dist/sketchbatch_*
	@for distribution in $(DISTRIBUTIONS); do \
	  $(UV) build --quiet --no-build-isolation --python .tools/dist/bin/python -o dist $$distribution || exit; done
	.tools/dist/bin/twine check --strict dist/sketchbatch_*

# mkdocs warns that a later version 2 will not be compatible; locks/docs.txt has version 1.
docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/.done .tools/docs/.done ## build the site: the pages of docs/, references of Python, commands and metrics, into site/
	@$(VENV)/python -m tools.references .tools/docs/source
	.tools/docs/bin/mkdocs build --quiet --strict --config-file .tools/docs/source/mkdocs.yml

release: ## set VERSION=x.y.z everywhere, date the changelog, commit and tag; pushes nothing
	@$(PYTHON) tools/release.py "$(VERSION)"

protos: .tools/protos/.done ## generate the stubs from the .proto files
	@$(call generate,protos)

# pyproject.toml gives the reason why grpcio-tools is pinned to 1.71.2. For the Open Inference Protocol only messages
# are generated. Generated gRPC stubs would use the package name sketchbatch.openinference.v2 in the name of the
# service, but the protocol uses `inference`.
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

locks: $(UV) ## resolve the hashed requirement files in locks/; UPGRADE= keeps present versions
	$(COMPILE) client/pyproject.toml --extra charts --extra demo -o locks/client.txt
	$(COMPILE) service/pyproject.toml --extra cpu -o locks/service-cpu.txt
	$(COMPILE) service/pyproject.toml --extra gpu -o locks/service-gpu.txt
	$(COMPILE) trainer/pyproject.toml --extra train -o locks/trainer.txt
	$(COMPILE) $(DISTRIBUTIONS:%=%/pyproject.toml) --extra cpu --extra demo --group pyproject.toml:serve -o locks/serve.txt
	$(COMPILE) $(DISTRIBUTIONS:%=%/pyproject.toml) --extra charts --extra cpu --extra demo --extra traces --extra train --group pyproject.toml:dev -o locks/dev.txt
	$(COMPILE) --group pyproject.toml:protos -o locks/protos.txt
	$(COMPILE) client/pyproject.toml --group pyproject.toml:openinference --no-emit-package pyarrow -o locks/openinference.txt
	$(COMPILE) client/pyproject.toml --group pyproject.toml:ray -o locks/ray.txt
	$(COMPILE) --group pyproject.toml:perf-analyzer -o locks/perf-analyzer.txt
	$(COMPILE) --group pyproject.toml:tools -o locks/tools.txt
	$(COMPILE) --group pyproject.toml:build -o locks/build.txt
	$(COMPILE) --group pyproject.toml:dist -o locks/dist.txt
	$(COMPILE) --group pyproject.toml:docs -o locks/docs.txt
	$(COMPILE) --group pyproject.toml:image -o locks/image.txt
	$(COMPILE) --group pyproject.toml:k8s -o locks/k8s.txt

##@ Housekeeping
setup: .venv/.done .tools/protos/.done .tools/openinference/.done .tools/image/.done ## install everything, hashed, into .venv and .tools

clean: ## remove what the commands installed; runs/ stays
	rm -rf .venv .tools site examples/node/node_modules $(CPP_BUILD) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# The installation writes to stderr, so that stdout has only the output of the command.
$(UV): locks/tools.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Sketchbatch needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing uv into .tools" >&2
	@$(PYTHON) -m venv .tools >&2
	@.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r locks/tools.txt >&2
	@touch $@

.venv/.done: locks/dev.txt $(DISTRIBUTIONS:%=%/pyproject.toml) | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || \
	  { echo "TensorFlow, which .venv contains, has no release for $$($(PYTHON) --version 2>&1); try make PYTHON=python3.13" >&2; exit 1; }
	@echo "installing locks/dev.txt and the four distributions into .venv (3 GB, most of it TensorFlow)" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv >&2
	@$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(VENV)/python locks/dev.txt >&2
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(VENV)/python $(DISTRIBUTIONS:%=-e %) >&2
	@touch $@

# The environment of `make serve`: all distributions, but without TensorFlow and charts. Its bin folder also has
# `sketchbatch` and `sketchbatch-train`, which fetches drawings. The trainer does not support Python 3.14. Like
# Dockerfile.gpu, the recipe removes the C library of ONNX Runtime, of which the Python module has a copy, the tools of
# ONNX Runtime, and headers and tests.
SERVE_UNUSED := onnxruntime/capi/libonnxruntime.so.* \
  $(addprefix onnxruntime/,backend datasets quantization tools transformers) pyarrow/include pyarrow/tests

.tools/serve/.done: locks/serve.txt $(DISTRIBUTIONS:%=%/pyproject.toml) | $(UV)
	@echo "installing locks/serve.txt and the distributions into .tools/serve (320 MB, without TensorFlow)" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/serve >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/serve/bin/python locks/serve.txt >&2
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python .tools/serve/bin/python -e protos -e client -e service \
	  $$($(PYTHON) -c 'import sys; print("-e trainer" * (sys.version_info < (3, 14)))') >&2
	@cd .tools/serve/lib/python3.*/site-packages && rm -rf $(SERVE_UNUSED)
	@touch $@

# Each group of tools has its own environment: protos, openinference (350 MB), image, k8s (700 MB), docs (150 MB), dist,
# ray (540 MB) and perf-analyzer.
.tools/%/.done: locks/%.txt | $(UV)
	@echo "installing locks/$*.txt into .tools/$*" >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .tools/$* >&2
	@$(UV) pip sync --quiet --require-hashes --python .tools/$*/bin/python locks/$*.txt >&2
	@touch $@
