#!/bin/sh
# Start the server in a container: publish the model, then replace this shell with Triton. Arguments go to Triton.
# MODEL_REPOSITORY: a volume. CAPTIONER_MODEL, CAPTIONER_REVISION: by default, what is live or else the embedded model.
# CAPTIONER_REQUIRE_GPU: 1 refuses to start without a usable GPU. CAPTIONER_DRAIN_SECONDS: for captions in flight.
set -eu

# With a driver that is too old, torch and Triton would serve on the CPU, a hundred times slower, and say so nowhere.
if [ "${CAPTIONER_REQUIRE_GPU:-0}" = 1 ]; then
    python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "captioner: a GPU was asked for (CAPTIONER_REQUIRE_GPU=1), and torch cannot use one. Compare the driver that" \
            "nvidia-smi prints with what the image needs, or start the profile for CPUs." >&2
        exit 1
    }
fi

# Create the repository if the volume is empty, and publish the model unless it is live. A shell that is process 1 ignores
# SIGTERM, so it waits in a way that a signal ends.
trap 'kill "$publish" 2>/dev/null || true; exit 143' TERM INT
python3 -m export --repository "$MODEL_REPOSITORY" \
    ${CAPTIONER_MODEL:+"$CAPTIONER_MODEL${CAPTIONER_REVISION:+@$CAPTIONER_REVISION}"} &
publish=$!
wait "$publish"
trap - TERM INT

# Admin endpoints need this key: CAPTIONER_ADMIN_KEY, or else a file in the repository that only its owner can read.
key=$(python3 -c 'import pathlib, sys; from captioner.publish.model_control import admin_key
print(admin_key(pathlib.Path(sys.argv[1])))' "$MODEL_REPOSITORY")
restricted="shared-memory,model-repository,trace,logging:captioner-admin=$key"

# Once the server is ready, load the previous version too, so that a rollback only moves the traffic. The child of a child,
# because Triton would leave a child of its own a zombie.
(python3 -m captioner.publish.warm_standby "$MODEL_REPOSITORY" 127.0.0.1:8001 &)

# As in captioner/launcher/triton_wheel.py: torch counts the host's cores, and a decoder on the CPU waits awake.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(python3 -c 'from captioner.machine import usable_cores; print(usable_cores())')}"
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-20000}"

# Triton 2.51 copies a form's body onto a thread's stack: with 8 MiB of stack, one request ends the server.
ulimit -s 1048576 2>/dev/null || echo "the stack limit cannot be raised; see SECURITY.md" >&2

# A repository of an older release that cannot be written lacks this model.
caption=
if [ -f "$MODEL_REPOSITORY/caption/config.pbtxt" ]; then caption=--load-model=caption; fi

exec tritonserver \
    --model-repository="$MODEL_REPOSITORY" \
    --model-control-mode=explicit \
    --load-model=captioner \
    ${caption:+"$caption"} \
    --load-model=preprocess \
    --load-model=vision_encoder \
    --exit-on-error=true \
    --disable-auto-complete-config \
    --http-thread-count=4 \
    --http-restricted-api="$restricted" \
    --grpc-restricted-protocol="$restricted" \
    --grpc-keepalive-permit-without-calls=1 \
    --grpc-http2-min-recv-ping-interval-without-data=500 \
    --grpc-header-forward-pattern='^user-agent$' \
    --exit-timeout-secs="${CAPTIONER_DRAIN_SECONDS:-30}" \
    "$@"
