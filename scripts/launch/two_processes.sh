#!/usr/bin/env bash
# Two processes on this machine train one run, as two machines would:
#   scripts/launch/two_processes.sh --output runs/two --steps 100
# All options are those of scripts/pretrain.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
port=${PORT:-8476}
pids=()
for index in 0 1; do
  JAX_PLATFORMS=cpu python scripts/pretrain.py "$@" \
    --hosts.coordinator "127.0.0.1:$port" --hosts.count 2 --hosts.index "$index" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM
trap '' INT # Ctrl-C reaches both processes, which save and end
status=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" && break || true; done
  wait "$pid" || status=$?
done
exit "$status"
