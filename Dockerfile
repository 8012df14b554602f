# Two images from one source: `server` on NVIDIA's Triton image, `frontend` on Python's. docker-compose.yml builds both.

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
# The variables that keep a library from reporting usage are set by captioner/__init__.py, except for Triton's own backend.
ENV ORT_DISABLE_TELEMETRY=1 \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/huggingface \
    MODEL_REPOSITORY=/models
COPY constraints.txt /tmp/
# The wheel carries the templates of model_repository/. onnxruntime is for the export, which compares the graph with the
# original model; Triton serves the graph with its own backend.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "captioner[models,quantised,export] @ file://$(echo /wheels/captioner-*.whl)" "onnxruntime>=1.20"
COPY deploy/serve.sh /opt/captioner/serve.sh
# A new named volume gets the owner of the folder that it is mounted on.
RUN install -d -o 1000 -g 1000 /models /huggingface
USER 1000:1000
EXPOSE 8000 8001 8002
VOLUME ["/models", "/huggingface"]
# The health check is a caption: an open port does not prove that the model works.
HEALTHCHECK --interval=30s --timeout=20s --start-period=15m --retries=3 \
    CMD ["captioner", "probe", "--server", "127.0.0.1:8001", "--timeout-s", "15"]
ENTRYPOINT ["/bin/sh", "/opt/captioner/serve.sh"]

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
