#!/usr/bin/env bash
# bash experiments/cifar10-four/run.sh [DATA] [OUT]; stopped and started again it goes on.
set -euo pipefail
data=${1:-torchvision:CIFAR10}
out=${2:-runs/cifar10-four}
small="student.image_size=32 student.patch_size=4 epochs=6 batch=128"

unimim teachers train-clip --data "$data" --image-size 32 --patch-size 4 --epochs 6 --lr 2e-3 --out "$out/teacher"
# shellcheck disable=SC2086
unimim compare mae-micro beit-micro data2vec-micro maskdistill-micro $small \
  "maskdistill-micro:teacher.model=local-dir:$out/teacher" --data "$data" --in-memory --probe-images 20000 --log-every 78 --out "$out"
