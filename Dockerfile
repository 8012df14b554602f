# Two images from one source: `server` on NVIDIA's Triton image, `frontend` on Python's. docker-compose.yml builds both.
# It has never been built: no container engine was at hand. No digests are known, so tags are pinned; a build argument may
# name a digest after its tag, as TAG@sha256:…

# This release has a native ONNX Runtime backend for the encoder, and Python 3.12. Before 26.04, a server stays ready
# when the process of a Python model dies.
ARG TRITON_TAG=26.07-py3
ARG PYTHON_TAG=3.12-slim

FROM python:${PYTHON_TAG} AS wheel
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY captioner captioner
COPY export export
COPY frontend frontend
COPY model_repository model_repository
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG} AS server
# The address of a package index with torch for CPUs, as torch's own installation page names it. Empty: torch for CUDA,
# which is several gigabytes larger.
ARG TORCH_INDEX_URL=
# captioner/__init__.py turns the reports of its libraries off; this turns off those of Triton's own ONNX Runtime. With
# more than two arenas, malloc keeps the memory of models that were unloaded. User 1000 has no home folder in the image.
ENV ORT_DISABLE_TELEMETRY=1 \
    MALLOC_ARENA_MAX=2 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/huggingface \
    MODEL_REPOSITORY=/models \
    VIRTUAL_ENV=/opt/captioner/venv \
    PATH=/opt/captioner/venv/bin:$PATH
COPY constraints.txt /tmp/
# The wheel carries the templates of model_repository/. A virtual environment, because pip cannot replace Debian's own
# packages; Triton's Python backend uses the first python3 in PATH. The image may have no ensurepip, so its pip installs.
# onnxruntime is for the export, which compares the graph with the original model. It is the release of Triton's backend,
# so that what was compared is what is served.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /usr/bin/python3 -m venv --without-pip "$VIRTUAL_ENV" \
    && grep -v '^onnxruntime==' /tmp/constraints.txt > /tmp/pins.txt \
    && /usr/bin/python3 -m pip --python "$VIRTUAL_ENV/bin/python3" install --no-cache-dir --constraint /tmp/pins.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
        "captioner[models,quantised,export] @ file://$(echo /wheels/captioner-*.whl)" "onnxruntime==1.27.0"
COPY deploy/serve.sh /opt/captioner/serve.sh
# A new named volume gets the owner of the folder that it is mounted on.
RUN install -d -o 1000 -g 1000 /models /huggingface
USER 1000:1000
EXPOSE 8000 8001 8002
VOLUME ["/models", "/huggingface"]
# The health check is a caption: an open port does not prove that the model works.
HEALTHCHECK --interval=30s --timeout=20s --start-period=15m --retries=3 \
    CMD ["captioner", "probe", "--server", "127.0.0.1:8001", "--timeout-s", "15"]
# The image's own entry point comes first: it checks the driver and the shared memory.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "/bin/sh", "/opt/captioner/serve.sh"]

FROM python:${PYTHON_TAG} AS frontend
ENV PYTHONUNBUFFERED=1 HOME=/tmp
COPY constraints.txt /tmp/
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "captioner[frontend] @ file://$(echo /wheels/captioner-*.whl)"
USER 1000:1000
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=1m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "frontend", "--host", "0.0.0.0"]
