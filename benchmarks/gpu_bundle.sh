#!/usr/bin/env bash
# Download what a GPU machine without a package index needs for `make bench-gpu` into dist/gpu, in pieces of 50 MB.
set -euo pipefail
cd "$(dirname "$0")/.."

make .tools/bin/uv
download=(.tools/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes
  --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
lock=locks/service-gpu.txt

rm -rf dist/gpu && mkdir -p dist/gpu
awk '/^[^ ]/ {keep = !/^(nvidia-|onnxruntime-gpu)/} keep' "$lock" >dist/gpu/small.txt
awk '/^[^ ]/ {keep = /^onnxruntime-gpu/} keep' "$lock" >dist/gpu/large.txt
"${download[@]}" -r dist/gpu/small.txt -d dist/gpu/wheels
"${download[@]}" -r dist/gpu/large.txt -d dist/gpu
cd dist/gpu
sha256sum onnxruntime_gpu-*.whl >wheels/sha256
split -b 50M onnxruntime_gpu-*.whl piece-
rm onnxruntime_gpu-*.whl ./*.txt
