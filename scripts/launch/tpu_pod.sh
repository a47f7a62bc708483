#!/usr/bin/env bash
# A TPU slice of several hosts: the same command on every host, which find each other.
#   TPU=my-tpu ZONE=us-central2-b scripts/launch/tpu_pod.sh --output /mnt/runs/base --steps 100000
# t5jax must be installed and the disk mounted on all hosts; options are those of pretrain.py.
set -euo pipefail
printf -v options '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
  --command="cd t5jax && exec python scripts/pretrain.py --hosts.auto $options"
