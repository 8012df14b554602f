"""Triton's `onnxruntime` backend in Python, for a tritonserver without the native one.

It reads the same fields of `config.pbtxt` and applies the same checks at load, so that a model that loads here also
loads in the native backend. Where a native `libtriton_onnxruntime.so` exists, Triton uses it instead of this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from captioner.artifacts.onnx_session import ALLOW_SPINNING, CPU, CUDA, open_session
from captioner.parent import end_with_parent

end_with_parent()

Config = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]

TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
GRAPH_LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel:
    """One instance of one ONNX model: one session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model of this version. Raises TritonModelException if the model and its config disagree."""
        config = json.loads(args["model_config"])
        path = Path(pb_utils.get_model_dir()) / (config.get("default_model_filename") or "model.onnx")
        path = path / "model.onnx" if path.is_dir() else path
        if not path.is_file():
            raise pb_utils.TritonModelException(f"unable to find {str(path)!r} for model {config['name']!r}")
        provider, provider_options = execution_provider(
            config, args["model_instance_kind"], args["model_instance_device_id"]
        )
        options = session_options(config)
        try:
            self.session = open_session(path, provider=provider, provider_options=provider_options, options=options)
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            raise pb_utils.TritonModelException(f"{path} cannot be loaded: {error}") from error
        if self.session.get_providers()[0] != provider:  # ONNX Runtime itself falls back without an error
            raise pb_utils.TritonModelException(f"{provider} is configured but did not start: see the log above")
        check(config, "input", self.session.get_inputs())
        check(config, "output", self.session.get_outputs())
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.strings = {tensor.name for tensor in self.session.get_inputs() if tensor.type == "tensor(string)"}
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.batching = config["max_batch_size"] > 0
        pb_utils.Logger.log_info(
            f"{args['model_instance_name']}: {path} on {provider} {provider_options}, "
            f"graph {options.graph_optimization_level.name}, {options.execution_mode.name}, "
            f"intra-op {options.intra_op_num_threads}, inter-op {options.inter_op_num_threads}, "
            f"arena {options.enable_cpu_mem_arena}, pattern {options.enable_mem_pattern}, "
            f"spinning {options.get_session_config_entry(ALLOW_SPINNING)}"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with one session run, or with one run per shape if their shapes differ."""
        responses: list[Any] = [None] * len(requests)
        inputs: dict[int, Arrays] = {}
        groups: dict[object, list[int]] = {}
        for index, request in enumerate(requests):
            try:
                inputs[index] = self.read(request)
            except Exception as error:
                responses[index] = refusal(error)
                continue
            shapes = tuple(array.shape[1:] for array in inputs[index].values())
            groups.setdefault(shapes if self.batching else index, []).append(index)
        for group in groups.values():
            for index, outcome in zip(group, self.run([inputs[index] for index in group]), strict=True):
                if isinstance(outcome, Exception):
                    responses[index] = refusal(outcome)
                    continue
                wanted = [name for name in self.outputs if name in requests[index].requested_output_names()]
                tensors = [pb_utils.Tensor(name, outcome[name]) for name in wanted]
                responses[index] = pb_utils.InferenceResponse(tensors)
        return responses

    def read(self, request: Any) -> Arrays:
        """Return the request's inputs by name, each (batch, ...) if the model batches. Raises ValueError."""
        arrays = {}
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise ValueError(f"input {name!r} is missing")
            array = tensor.as_numpy()
            if name in self.strings:
                array = np.array([text.decode() for text in array.flat], object).reshape(array.shape)
            arrays[name] = array
        if self.batching and len({len(array) for array in arrays.values()}) > 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(f"the inputs' batch sizes differ: {shapes}")
        return arrays

    def run(self, inputs: list[Arrays]) -> list[Arrays | Exception]:
        """Return each request's outputs. If the joint run fails, run each request alone, so that only the bad fail."""
        try:
            if len(inputs) == 1:
                return [dict(zip(self.outputs, self.session.run(self.outputs, inputs[0]), strict=True))]
            joint = {name: np.concatenate([arrays[name] for arrays in inputs]) for name in self.inputs}
            ends = np.cumsum([len(arrays[self.inputs[0]]) for arrays in inputs])
            parts = []
            for name, output in zip(self.outputs, self.session.run(self.outputs, joint), strict=True):
                if len(output) != ends[-1]:
                    raise ValueError(f"output {name!r} has shape {output.shape} for a batch of {ends[-1]}")
                parts.append(np.split(output, ends[:-1]))
            return [dict(zip(self.outputs, arrays, strict=True)) for arrays in zip(*parts, strict=True)]
        except Exception as error:
            return [error] if len(inputs) == 1 else [outcome for each in inputs for outcome in self.run([each])]


def refusal(error: Exception) -> Any:
    """Return an error response for one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))


def session_options(config: Config) -> ort.SessionOptions:
    """Return session options from `optimization.graph.level` and the native backend's `parameters`.

    The native backend ignores the parameter `session.intra_op.allow_spinning`.
    """
    options = ort.SessionOptions()
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    if level not in GRAPH_LEVELS:
        raise pb_utils.TritonModelException(f"optimization.graph.level is {level}; it can be -1, 0, 1 or 2")
    options.graph_optimization_level = GRAPH_LEVELS[level]
    options.intra_op_num_threads = parameter(config, "intra_op_thread_count", int, 0)
    options.inter_op_num_threads = parameter(config, "inter_op_thread_count", int, 0)
    if parameter(config, "execution_mode", boolean, False):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = parameter(config, "enable_mem_arena", boolean, True)
    options.enable_mem_pattern = parameter(config, "enable_mem_pattern", boolean, True)
    options.add_session_config_entry(ALLOW_SPINNING, parameter(config, ALLOW_SPINNING, str, "0"))
    return options


def parameter(config: Config, name: str, parse: Callable[[str], Any], default: Any) -> Any:
    """Return the parsed value of a `parameters` entry, or `default`."""
    entry = config.get("parameters", {}).get(name)
    if entry is None:
        return default
    try:
        return parse(entry["string_value"])
    except ValueError:
        raise pb_utils.TritonModelException(f"parameter {name} is {entry['string_value']!r}") from None


def boolean(text: str) -> bool:
    """Parse `true`, `1`, `false` or `0`. Raises ValueError."""
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def execution_provider(config: Config, kind: str, device: str) -> tuple[str, dict[str, str]]:
    """Return the execution provider of this instance and its options. A configured provider is never replaced."""
    side = "gpu" if kind == "GPU" else "cpu"
    provider = CUDA if kind == "GPU" else CPU
    options = {"device_id": device} if kind == "GPU" else {}
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for accelerator in accelerators.get(f"{side}_execution_accelerator", []):
        if kind != "GPU" or accelerator["name"] != "cuda":
            raise pb_utils.TritonModelException(
                f"the config names the {side} accelerator {accelerator['name']!r}, which only the native backend has"
            )
        options |= accelerator.get("parameters", {})
    if provider not in ort.get_available_providers():
        raise pb_utils.TritonModelException(
            "the config sets KIND_GPU, but this onnxruntime has only "
            f"{', '.join(ort.get_available_providers())}; install onnxruntime-gpu or set KIND_CPU"
        )
    return provider, options


def check(config: Config, side: str, tensors: list[Any]) -> None:
    """Apply the native backend's load checks to the names, data types and dimensions of the config and the graph.

    Inputs: fixed dimensions of the graph must equal the config's. Outputs: all dimensions must be equal; a symbolic
    one is −1. Raises TritonModelException.
    """
    prefix = f"unable to load model {config['name']!r}, "
    graph = {tensor.name: tensor for tensor in tensors}
    if side == "input" and len(graph) != len(config["input"]):
        raise pb_utils.TritonModelException(
            f"{prefix}configuration expects {len(config['input'])} inputs, model provides {len(graph)}"
        )
    for declared in config[side]:
        name = declared["name"]
        if name not in graph:
            raise pb_utils.TritonModelException(
                f"{prefix}unexpected inference {side} {name!r}, allowed {side}s are: {', '.join(sorted(graph))}"
            )
        data_type = TYPES.get(graph[name].type, graph[name].type)
        if data_type != declared["data_type"]:
            raise pb_utils.TritonModelException(
                f"{prefix}configuration expects datatype {declared['data_type']} for {side} {name!r}, "
                f"model provides {data_type}"
            )
        shape = [size if isinstance(size, int) else -1 for size in graph[name].shape]
        dims = list(declared.get("reshape", {}).get("shape", declared["dims"]))
        full = [-1, *dims] if config["max_batch_size"] > 0 else dims
        if config["max_batch_size"] > 0 and shape[:1] != [-1]:
            raise pb_utils.TritonModelException(
                f"{prefix}tensor {name!r}: for the model to support batching the shape should have at least "
                f"1 dimension and the first dimension must be -1; but shape expected by the model is {shape}"
            )
        fits = all(
            size in (-1, want) if side == "input" else size == want for size, want in zip(shape, full, strict=False)
        )
        if len(shape) != len(full) or not fits:
            raise pb_utils.TritonModelException(
                f"{prefix}tensor {name!r}: the model expects shape {shape} but the model configuration "
                f"specifies shape {full}" + (" (with the batch in front)" if config["max_batch_size"] > 0 else "")
            )
