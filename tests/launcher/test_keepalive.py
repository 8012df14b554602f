"""A client may send gRPC keepalive pings: a quiet stream lives on."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.conftest import Start, write_model

QUIET_MODEL = """
import threading, time
import triton_python_backend_utils as pb_utils

def answer(sender, seconds):
    time.sleep(seconds.item())
    response = pb_utils.InferenceResponse([pb_utils.Tensor("y", seconds)])
    sender.send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().copy()
            threading.Thread(target=answer, args=(request.get_response_sender(), seconds)).start()
"""
CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


@pytest.mark.triton
@pytest.mark.parametrize(
    ("ping_s", "quiet_s"), [(1.0, 6.0), pytest.param(10.0, 60.0, marks=pytest.mark.exhaustive)], ids=["1 s", "10 s"]
)
def test_a_quiet_stream_outlives_the_pings_of_its_client(
    tmp_path: Path, start_triton: Start, ping_s: float, quiet_s: float
) -> None:
    write_model(tmp_path, "quiet", QUIET_MODEL, CONFIG)
    server = start_triton(tmp_path, models=("quiet",))
    pings = triton.KeepAliveOptions(
        keepalive_time_ms=int(ping_s * 1000), keepalive_permit_without_calls=True, http2_max_pings_without_data=0
    )
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(server.grpc_address, keepalive_options=pings) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for seconds in (quiet_s, 0.0):  # a stream that waits for a response, then one without any request
            tensor = triton.InferInput("x", [1], "FP32")
            tensor.set_data_from_numpy(np.array([seconds], np.float32))
            client.async_stream_infer("quiet", [tensor])
            assert answers.get(timeout=quiet_s + 30).as_numpy("y").item() == seconds
            time.sleep(quiet_s if seconds else 0)
