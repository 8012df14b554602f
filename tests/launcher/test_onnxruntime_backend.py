"""The Python `onnxruntime` backend on the real tritonserver, with small graphs."""

from __future__ import annotations

from collections.abc import Iterator
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
from captioner.launcher.supervisor import TritonServer
from tests.conftest import Start

pytestmark = pytest.mark.triton

Shape = list[str | int]
KINDS = {"BOOL": "BOOL", "UINT8": "UINT8", "INT64": "INT64", "FP16": "FLOAT16", "FP64": "DOUBLE", "BYTES": "STRING"}
PARAMETERS = {
    "intra_op_thread_count": "2",
    "inter_op_thread_count": "3",
    "execution_mode": "1",
    "enable_mem_arena": "0",
    "enable_mem_pattern": "false",
    "session.intra_op.allow_spinning": "1",
}


def write_model(repository: Path, name: str, config: str, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (repository / name / "1").mkdir(parents=True)
    onnx.save(model, str(repository / name / "1" / "model.onnx"))
    (repository / name / "config.pbtxt").write_text(
        f'name: "{name}" backend: "onnxruntime" instance_group [{{ kind: KIND_CPU count: 1 }}]\n{config}'
    )


def one_node(op: str, x: Shape, y: Shape) -> onnx.GraphProto:
    """Return a graph of one node from `x` to `y`, both FP32."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    return helper.make_graph([helper.make_node(op, ["x"], ["y"])], "graph", inputs, outputs)


def lookup() -> onnx.GraphProto:
    """Return a graph that fails for an index outside its table of 3."""
    return helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["b", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])],
    )


def every_kind() -> onnx.GraphProto:
    """Return a graph that copies one input of each data type."""
    tensors = {kind: TensorProto.DataType.Value(onnx_type) for kind, onnx_type in KINDS.items()}
    return helper.make_graph(
        [helper.make_node("Identity", [f"x_{kind}"], [f"y_{kind}"]) for kind in tensors],
        "kinds",
        [helper.make_tensor_value_info(f"x_{kind}", number, ["b", 2]) for kind, number in tensors.items()],
        [helper.make_tensor_value_info(f"y_{kind}", number, ["b", 2]) for kind, number in tensors.items()],
    )


def io(dims: str, batch: int = 8, kind: str = "TYPE_FP32", output: str | None = None) -> str:
    """Return the config of tensors x and y with the same `dims`, unless y has `output`."""
    return (
        f"max_batch_size: {batch}\n"
        f'input [{{ name: "x" data_type: {kind} dims: {dims} }}]\n'
        f'output [{{ name: "y" data_type: {kind} dims: {output or dims} }}]\n'
    )


def dynamic_batching(preferred: int, delay_us: int) -> str:
    return f"dynamic_batching {{ preferred_batch_size: [{preferred}] max_queue_delay_microseconds: {delay_us} }}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One server with every model of this file that loads."""
    repository = tmp_path_factory.mktemp("onnxruntime")
    batches: Shape = ["batch", "width"]
    write_model(repository, "batched", io("[-1]") + dynamic_batching(8, 300_000), one_node("Softmax", batches, batches))
    write_model(repository, "alone", io("[-1]"), one_node("Softmax", batches, batches))
    write_model(repository, "unbatched", io("[-1, 2]", batch=0), one_node("Relu", ["rows", 2], ["rows", 2]))
    config = io("[1]", kind="TYPE_INT64").replace('"y" data_type: TYPE_INT64', '"y" data_type: TYPE_FP32')
    write_model(repository, "lookup", config + dynamic_batching(2, 500_000), lookup())
    declared = {kind: "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}" for kind in KINDS}
    tensors = (
        f"{side} [" + ", ".join(f'{{ name: "{x}_{k}" data_type: {t} dims: [2] }}' for k, t in declared.items()) + "]\n"
        for side, x in (("input", "x"), ("output", "y"))
    )
    write_model(repository, "kinds", "max_batch_size: 8\n" + "".join(tensors), every_kind())
    parameters = (f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in PARAMETERS.items())
    config = io("[3]") + "optimization { graph { level: 1 } }\n" + "".join(parameters)
    write_model(repository, "options", config, one_node("Relu", ["b", 3], ["b", 3]))
    models = tuple(folder.name for folder in repository.iterdir())
    log_path = repository.with_suffix(".log")
    with TritonServer(
        repository, models=models, http_port=0, grpc_port=0, metrics_port=0, log_path=log_path
    ) as started:
        yield started


@pytest.fixture
def client(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_address) as client:
        yield client


def infer(
    client: triton.InferenceServerClient, model: str, x: np.ndarray[Any, Any], kind: str = "FP32"
) -> np.ndarray[Any, Any]:
    tensor = triton.InferInput("x", x.shape, kind)
    tensor.set_data_from_numpy(x)
    answer: np.ndarray[Any, Any] = client.infer(model, [tensor], client_timeout=30).as_numpy("y")
    return answer


def test_batched_requests_get_the_results_that_each_gets_alone(client: triton.InferenceServerClient) -> None:
    xs = [np.random.default_rng(seed).normal(size=(1 + seed % 2, 5)).astype(np.float32) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda x: infer(client, "batched", x), xs))
    statistics = client.get_inference_statistics("batched", as_json=True)["model_stats"][0]
    assert int(statistics["execution_count"]) < len(xs), "nothing was batched"
    for x, batched in zip(xs, together, strict=True):
        np.testing.assert_allclose(batched, infer(client, "alone", x), rtol=1e-6)


def test_every_data_type_is_read_and_returned(client: triton.InferenceServerClient) -> None:
    values = {
        kind: np.array([["ä".encode(), b""]] if kind == "BYTES" else [[1, 0]]).astype(triton_to_np_dtype(kind))
        for kind in KINDS
    }
    tensors = [triton.InferInput(f"x_{kind}", x.shape, kind) for kind, x in values.items()]
    for tensor, x in zip(tensors, values.values(), strict=True):
        tensor.set_data_from_numpy(x)
    answer = client.infer("kinds", tensors, client_timeout=30)
    for kind, x in values.items():
        assert answer.as_numpy(f"y_{kind}").tolist() == x.tolist(), kind


def test_a_model_without_batching_runs_each_request(client: triton.InferenceServerClient) -> None:
    x = np.array([[-1, 2], [3, -4], [5, 6]], np.float32)
    assert infer(client, "unbatched", x).tolist() == [[0, 2], [3, 0], [5, 6]]


def test_a_request_that_fails_in_a_batch_does_not_fail_the_others(client: triton.InferenceServerClient) -> None:
    """Both requests have the same shape and are in one batch; only one has an index outside the table."""
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(infer, client, "lookup", np.array([[7]]), "INT64")
        good = pool.submit(infer, client, "lookup", np.array([[2]]), "INT64")
        assert good.result().tolist() == [[30.0]]
        with pytest.raises(InferenceServerException, match="out of data bounds"):
            bad.result()
    with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'x'"):
        infer(client, "lookup", np.array([[1, 2]]), "INT64")


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
def test_a_config_that_does_not_match_the_graph_is_refused(
    tmp_path: Path, start_triton: Start, config: str, x: Shape, y: Shape, reason: str
) -> None:
    write_model(tmp_path, "graph", config, one_node("Relu", x, y))
    with pytest.raises(StartupRefused, match=f"model 'graph' cannot be loaded: .*{reason}"):
        start_triton(tmp_path, models=("graph",))


def test_a_file_that_is_not_a_model_is_refused_by_path(tmp_path: Path, start_triton: Start) -> None:
    write_model(tmp_path, "graph", io("[3]"), one_node("Relu", ["b", 3], ["b", 3]))
    (tmp_path / "graph" / "1" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(StartupRefused, match=r"model\.onnx cannot be loaded"):
        start_triton(tmp_path, models=("graph",))


def test_the_session_gets_the_options_of_the_config(server: TritonServer) -> None:
    assert (
        "on CPUExecutionProvider {}, graph ORT_ENABLE_EXTENDED, ORT_PARALLEL, intra-op 2, inter-op 3, "
        "arena False, pattern False, spinning 1" in session_of(server, "options")
    )


def test_an_empty_config_gets_the_native_defaults_and_no_spinning(server: TritonServer) -> None:
    assert (
        "graph ORT_ENABLE_ALL, ORT_SEQUENTIAL, intra-op 0, inter-op 0, arena True, pattern True, spinning 0"
        in session_of(server, "alone")
    )


def session_of(server: TritonServer, model: str) -> str:
    """Return the line of the log that describes a model's session."""
    return next(
        line for line in server.log_path.read_text().splitlines() if f"{model}_0_0: " in line and "graph" in line
    )
