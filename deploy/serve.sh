#!/bin/sh
# In the server's container: the model published, then Triton in place of this shell.
# CAPTIONER_MODEL, CAPTIONER_REVISION: another model than the published or embedded one. MODEL_REPOSITORY: a volume.
set -eu

# Creates the repository where the volume is empty, and publishes the model unless it is live.
python3 -m export --repository "$MODEL_REPOSITORY" \
    ${CAPTIONER_MODEL:+"$CAPTIONER_MODEL${CAPTIONER_REVISION:+@$CAPTIONER_REVISION}"}

# Doors for administrators open to who may write the repository: the key lies there, or in CAPTIONER_ADMIN_KEY.
key=$(python3 -c 'import pathlib, sys; from captioner.publish.model_control import admin_key
print(admin_key(pathlib.Path(sys.argv[1])))' "$MODEL_REPOSITORY")
shut="shared-memory,model-repository,trace,logging:captioner-admin=$key"

# The version before the live one is loaded once the server is there, so that a rollback only moves the traffic.
python3 -m captioner.publish.warm_standby "$MODEL_REPOSITORY" 127.0.0.1:8001 &

exec tritonserver \
    --model-repository="$MODEL_REPOSITORY" \
    --model-control-mode=explicit \
    --load-model=captioner \
    --load-model=preprocess \
    --load-model=vision_encoder \
    --exit-on-error=true \
    --disable-auto-complete-config \
    --http-thread-count=4 \
    --http-restricted-api="$shut" \
    --grpc-restricted-protocol="$shut" \
    --grpc-header-forward-pattern='^user-agent$' \
    --exit-timeout-secs=30 \
    "$@"
