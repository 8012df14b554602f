"""ONNX Runtime sessions: the one place where they are created."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

# After a run, spinning threads would take the decoder's cores.
ALLOW_SPINNING = "session.intra_op.allow_spinning"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def open_session(
    model: Path | bytes,
    *,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
    threads: int = 0,
    options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """Open a model file or a serialized model on one execution provider.

    `threads`: intra-op threads, 0 for one a core; ignored when `options` are given. Raises what ONNX Runtime raises.
    """
    if options is None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry(ALLOW_SPINNING, "0")
    if provider == CUDA:
        ort.preload_dlls()  # CUDA and cuDNN as pip packages, where torch brought them
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, [provider], [dict(provider_options or {})])


def best_provider(gpu: bool) -> str:
    """Return CUDA when `gpu` is wanted and this ONNX Runtime build has it, otherwise the CPU."""
    return CUDA if gpu and CUDA in ort.get_available_providers() else CPU
