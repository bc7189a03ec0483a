#!/bin/sh
# Call the service with grpcurl, on Linux and macOS. gRPC reflection describes the service, so no .proto file is needed.
set -eu
cd "$(dirname "$0")"
server=${SKETCHBATCH_SERVER:-localhost:50051}
service=sketchbatch.v1.ClassifierService

command -v grpcurl >/dev/null || {
  echo "error: grpcurl must be installed. macOS: brew install grpcurl. Linux: a release of" \
    "https://github.com/fullstorydev/grpcurl/releases" >&2
  exit 127
}

# Sends one request. -max-time is the deadline in seconds. Exit code 78 = 64 + 14 means UNAVAILABLE: four more attempts.
call() {
  for delay in 0.2 0.4 0.8 1 last; do
    code=0
    grpcurl -plaintext -connect-timeout 5 -max-time 10 -keepalive-time 20 -max-msg-sz 67108864 "$@" || code=$?
    [ "$code" = 78 ] && [ "$delay" != last ] || break
    sleep "$delay"
  done
  [ "$code" = 0 ] || echo "error: grpcurl ended with exit code $code; is the service running at $server?" >&2
  return "$code"
}

# `base64` of macOS has no option -w, so tr removes the line breaks.
bitmap=$(base64 <cat.bitmap | tr -d '\n')

call "$server" list
call -d '{"service": ""}' "$server" grpc.health.v1.Health/Check
call "$server" "$service/GetModel"
call -d "{\"bitmaps\": \"$bitmap\", \"topK\": 3}" "$server" "$service/Classify"
