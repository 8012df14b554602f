"""The stand-in `onnxruntime` backend on the real tritonserver, with small graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from captioner.errors import StartupRefused
from tests.conftest import Start

pytestmark = pytest.mark.triton

Shape = list[str | int]


def write_onnx(
    repository: Path,
    config: str,
    x: Shape,
    y: Shape,
    op: str = "Relu",
    data_type: int = TensorProto.FLOAT,
    name: str = "graph",
) -> None:
    """A model `name` of one node from `x` to `y`, with the rest of its `config.pbtxt`."""
    node = helper.make_node(op, ["x"], ["y"])
    inputs = [helper.make_tensor_value_info("x", data_type, x)]
    outputs = [helper.make_tensor_value_info("y", data_type, y)]
    graph = helper.make_graph([node], "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (repository / name / "1").mkdir(parents=True)
    onnx.save(model, str(repository / name / "1" / "model.onnx"))
    (repository / name / "config.pbtxt").write_text(
        f'name: "{name}" backend: "onnxruntime" instance_group [{{ kind: KIND_CPU count: 1 }}]\n{config}'
    )


def io(dims: str, batch: int = 8, kind: str = "TYPE_FP32", output: str | None = None) -> str:
    """Tensors x and y of the same `dims`, or y of `output`."""
    return (
        f"max_batch_size: {batch}\n"
        f'input [{{ name: "x" data_type: {kind} dims: {dims} }}]\n'
        f'output [{{ name: "y" data_type: {kind} dims: {output or dims} }}]\n'
    )


def infer(
    client: triton.InferenceServerClient, x: np.ndarray[Any, Any], kind: str, name: str = "graph"
) -> np.ndarray[Any, Any]:
    tensor = triton.InferInput("x", x.shape, kind)
    tensor.set_data_from_numpy(x)
    answer: np.ndarray[Any, Any] = client.infer(name, [tensor], client_timeout=30).as_numpy("y")
    return answer


def test_requests_that_are_batched_together_get_what_each_gets_alone(tmp_path: Path, start_triton: Start) -> None:
    batching = "dynamic_batching { preferred_batch_size: [8] max_queue_delay_microseconds: 300000 }\n"
    write_onnx(tmp_path, io("[-1]") + batching, x=["batch", "width"], y=["batch", "width"], op="Softmax")
    server = start_triton(tmp_path, models=("graph",))
    xs = [np.random.default_rng(seed).normal(size=(1 + seed % 2, 5)).astype(np.float32) for seed in range(16)]
    with triton.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda x: infer(client, x, "FP32"), xs))
        statistics = client.get_inference_statistics("graph", as_json=True)["model_stats"][0]
        alone = [infer(client, x, "FP32") for x in xs]
    assert int(statistics["execution_count"]) < len(xs), "nothing was batched"
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_every_kind_of_data_type_goes_in_and_comes_out(tmp_path: Path, start_triton: Start) -> None:
    kinds = {
        "BOOL": "BOOL",
        "UINT8": "UINT8",
        "INT64": "INT64",
        "FP16": "FLOAT16",
        "FP64": "DOUBLE",
        "BYTES": "STRING",
    }
    for kind, onnx_type in kinds.items():
        declared = "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}"
        data_type = TensorProto.DataType.Value(onnx_type)
        write_onnx(tmp_path, io("[2]", kind=declared), ["b", 2], ["b", 2], "Identity", data_type, name=kind)
    server = start_triton(tmp_path, models=tuple(kinds))
    with triton.InferenceServerClient(server.grpc_address) as client:
        for kind in kinds:
            x = np.array([["ä".encode(), b""]] if kind == "BYTES" else [[1, 0]]).astype(triton_to_np_dtype(kind))
            assert infer(client, x, kind, name=kind).tolist() == x.tolist(), kind


def test_a_model_that_does_not_batch_is_run_for_each_request(tmp_path: Path, start_triton: Start) -> None:
    write_onnx(tmp_path, io("[-1, 2]", batch=0), x=["rows", 2], y=["rows", 2])
    server = start_triton(tmp_path, models=("graph",))
    with triton.InferenceServerClient(server.grpc_address) as client:
        x = np.array([[-1, 2], [3, -4], [5, 6]], np.float32)
        assert infer(client, x, "FP32").tolist() == [[0, 2], [3, 0], [5, 6]]


def test_a_request_that_the_graph_cannot_run_fails_alone(tmp_path: Path, start_triton: Start) -> None:
    """Both requests have the same shape and meet in one batch; only one has an index outside the table."""
    config = (
        'max_batch_size: 8\ninput [{ name: "x" data_type: TYPE_INT64 dims: [1] }]\n'
        'output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]\n'
        "dynamic_batching { preferred_batch_size: [2] max_queue_delay_microseconds: 500000 }\n"
    )
    write_onnx(tmp_path, config, x=["b", 1], y=["b", 1])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["b", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "graph" / "1" / "model.onnx"))
    server = start_triton(tmp_path, models=("graph",))
    with triton.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(2) as pool:
        bad = pool.submit(infer, client, np.array([[7]]), "INT64")
        good = pool.submit(infer, client, np.array([[2]]), "INT64")
        assert good.result().tolist() == [[30.0]]
        with pytest.raises(InferenceServerException, match="out of data bounds"):
            bad.result()
        with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'x'"):
            infer(client, np.array([[1, 2]]), "INT64")


@pytest.mark.parametrize(
    ("config", "x", "y", "reason"),
    [
        (
            io("[3]"),
            [1, 3],
            [1, 3],
            r"first dimension must be -1; but shape expected by the model is \[1, 3\]",
        ),
        (io("[-1]"), ["b", 3], ["b", 3], r"tensor 'x': the model expects shape \[-1, 3\].*shape \[-1, -1\]"),
        (io("[-1]", output="[3]"), ["b", "w"], ["b", "w"], r"tensor 'y': the model expects shape \[-1, -1\]"),
        (io("[3, 1]"), ["b", 3], ["b", 3], r"the model expects shape \[-1, 3\].*shape \[-1, 3, 1\]"),
        (io("[3]", kind="TYPE_FP16"), ["b", 3], ["b", 3], "datatype TYPE_FP16 for input 'x'.*TYPE_FP32"),
        (
            io("[3]").replace('"y"', '"z"'),
            ["b", 3],
            ["b", 3],
            "unexpected inference output 'z', allowed.*: y",
        ),
        (
            io("[3]").replace("}]", '}, { name: "extra" data_type: TYPE_FP32 dims: [3] }]', 1),
            ["b", 3],
            ["b", 3],
            "configuration expects 2 inputs, model provides 1",
        ),
        (io("[3]") + "optimization { graph { level: 7 } }", ["b", 3], ["b", 3], "graph.level is 7"),
        (
            io("[3]") + 'parameters { key: "intra_op_thread_count" value { string_value: "two" } }',
            ["b", 3],
            ["b", 3],
            "parameter intra_op_thread_count is 'two'",
        ),
        (
            io("[3]") + 'optimization { execution_accelerators { cpu_execution_accelerator: [{ name: "openvino" }] } }',
            ["b", 3],
            ["b", 3],
            "cpu accelerator 'openvino', which only the native backend has",
        ),
        (
            io("[3]") + 'default_model_filename: "other.onnx"',
            ["b", 3],
            ["b", 3],
            "unable to find .*other.onnx",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_graph_is_refused(
    tmp_path: Path, start_triton: Start, config: str, x: Shape, y: Shape, reason: str
) -> None:
    write_onnx(tmp_path, config, x, y)
    with pytest.raises(StartupRefused, match=f"model 'graph' cannot be loaded: .*{reason}"):
        start_triton(tmp_path, models=("graph",))


def test_a_file_that_is_no_model_is_refused_by_path(tmp_path: Path, start_triton: Start) -> None:
    write_onnx(tmp_path, io("[3]"), ["b", 3], ["b", 3])
    (tmp_path / "graph" / "1" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(StartupRefused, match=r"model\.onnx cannot be loaded"):
        start_triton(tmp_path, models=("graph",))


def test_the_session_gets_the_options_of_the_config(tmp_path: Path, start_triton: Start) -> None:
    parameters = {
        "intra_op_thread_count": "2",
        "inter_op_thread_count": "3",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
        "session.intra_op.allow_spinning": "1",
    }
    config = io("[3]") + "optimization { graph { level: 1 } }\n"
    for key, value in parameters.items():
        config += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
    write_onnx(tmp_path, config, ["b", 3], ["b", 3])
    log = start_triton(tmp_path, models=("graph",)).log_path.read_text()
    assert (
        "on CPUExecutionProvider {}, graph ORT_ENABLE_EXTENDED, ORT_PARALLEL, intra-op 2, inter-op 3, "
        "arena False, pattern False, spinning 1" in log
    )


def test_an_empty_config_gets_the_native_defaults_and_no_spinning(tmp_path: Path, start_triton: Start) -> None:
    write_onnx(tmp_path, io("[3]"), ["b", 3], ["b", 3])
    log = start_triton(tmp_path, models=("graph",)).log_path.read_text()
    assert "graph ORT_ENABLE_ALL, ORT_SEQUENTIAL, intra-op 0, inter-op 0, arena True, pattern True, spinning 0" in log
