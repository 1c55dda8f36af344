#!/usr/bin/env bash
# A run on a Cloud TPU slice of any number of hosts. From the folder of the repository:
#
#   export NAME=vicreg ZONE=us-central2-b TYPE=v4-32 RUNTIME=tpu-ubuntu2204-base
#   launch/tpu_pod.sh create     queues for it (SPOT=1: for one that may be taken away)
#   launch/tpu_pod.sh state      ... WAITING_FOR_RESOURCES ... ACTIVE
#   launch/tpu_pod.sh install    the last commit, on every host
#   launch/tpu_pod.sh run --config=configs/imagenet.py --workdir=gs://BUCKET/run
#   launch/tpu_pod.sh logs       follows those of host 0 (HOST=3: of another)
#   launch/tpu_pod.sh stop       saves, then ends
#   launch/tpu_pod.sh delete     gives the slice back
#
# Project and account are those of gcloud: gcloud config set project MINE.

set -euo pipefail

NAME=${NAME:-vicreg}
ZONE=${ZONE:-us-central2-b}
TYPE=${TYPE:-v4-32}
RUNTIME=${RUNTIME:-tpu-ubuntu2204-base}

on() { # on HOST COMMAND
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
create)
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
        --zone="$ZONE" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
        ${SPOT:+--spot}
    ;;
state)
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
        --format='value(state.state)'
    ;;
install)
    folder=$(mktemp -d)
    trap 'rm -r "$folder"' EXIT
    git archive --format=tar.gz --output="$folder/vicreg_jax.tar.gz" HEAD
    gcloud compute tpus tpu-vm scp "$folder/vicreg_jax.tar.gz" "$NAME:" \
        --zone="$ZONE" --worker=all
    # uv brings the Python that the image is too old for.
    on all "$(
        cat <<'HOST'
set -e
mkdir -p vicreg_jax
tar -xzf vicreg_jax.tar.gz -C vicreg_jax
cd vicreg_jax
[ -x "$HOME/.local/bin/uv" ] || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -x .venv/bin/python ] || "$HOME/.local/bin/uv" venv --python 3.12 .venv
"$HOME/.local/bin/uv" pip install --python .venv ".[tpu,data]"
HOST
    )"
    ;;
run)
    [ $# -gt 0 ] || { echo "usage: $0 run --config=... --workdir=..." >&2 && exit 2; }
    # It goes on when this connection ends.
    on all "cd vicreg_jax || exit 1
if ps -p \"\$(cat run.pid 2>/dev/null)\" -o args= 2>/dev/null | grep -q vicreg_jax; then
    echo 'a run is under way; stop it first' >&2
    exit 1
fi
nohup .venv/bin/python -u -m vicreg_jax.main$(printf ' %q' "$@") \\
    >> run.log 2>&1 < /dev/null &
echo \$! > run.pid"
    ;;
logs)
    on "${HOST:-0}" 'tail -n 100 -F vicreg_jax/run.log'
    ;;
stop)
    on all 'xargs kill -TERM < vicreg_jax/run.pid'
    ;;
delete)
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force
    ;;
*)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
