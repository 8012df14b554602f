"""Triton model `caption`: the captioner's caption in one response. It only translates between Triton and Forwarder."""

import json
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from captioner import wire
from captioner.errors import CaptionerError, ServerStopping, from_wire, typed
from captioner.parent import end_with_parent
from captioner.serving.forwarder import Forwarder, check_input, return_large_buffers

end_with_parent()
return_large_buffers()

OUTPUTS = [wire.CAPTION.name, wire.DETAILS.name]


class TritonPythonModel:
    """Not decoupled: since Triton 24.06, such a model may answer after `execute` has returned, with one response."""

    def initialize(self, args: dict[str, str]) -> None:
        """Prepare the threads. The captioner may be loaded later."""
        settings = json.loads(args["model_config"])["parameters"]
        help_text = "Requests to the model caption that are not answered yet"
        # Triton drops a metric when its family is freed.
        self.family = pb_utils.MetricFamily(wire.UNARY_REQUESTS, help_text, pb_utils.MetricFamily.GAUGE)
        self.metric = self.family.Metric(labels={})
        self.forwarder = Forwarder(int(settings["max_waiting"]["string_value"]), self.metric.increment)

    def execute(self, requests: list[Any]) -> None:
        """Answer image, prompt [1] and parameters with caption and details [1]."""
        for request in requests:
            writer = TritonWriter(request)
            try:
                parameters = wire.load_parameters(request.parameters(), request.timeout())
                inputs = copy(request)
                size = sum(len(data[0]) for data in inputs.values())
                self.forwarder.handle(parameters, size, partial(ask, inputs), writer)
            except Exception as error:  # an unreadable request must not fail the others
                writer.fail(typed(error))

    def finalize(self) -> None:
        """Answer all requests in flight, then stop."""
        self.forwarder.close()
        del self.forwarder, self.metric, self.family


def copy(request: Any) -> dict[str, Any]:
    """Copy the inputs: Triton frees the tensors when `execute` returns. Raises for one that is too large to wait."""
    copies = {}
    for name in (wire.IMAGE.name, wire.PROMPT.name):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            copies[name] = tensor.as_numpy()
            check_input(name, copies[name][0])
    return copies


def ask(inputs: dict[str, Any], parameters: dict[str, object]) -> list[Any]:
    """Return the outputs of the captioner's live version. Blocks. Raises the error that it answered."""
    request = pb_utils.InferenceRequest(
        model_name=wire.CAPTIONER,
        inputs=[pb_utils.Tensor(name, data) for name, data in inputs.items()],
        parameters=wire.forward_parameters(parameters),
        requested_output_names=OUTPUTS,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    responses = list(request.exec(decoupled=True))
    if not responses:  # Triton 2.51 loses one error where it refuses several requests at the same moment
        raise ServerStopping("the captioner gave no answer; retry later")
    if responses[-1].has_error():
        raise from_wire(responses[-1].error().message())
    outputs: list[Any] = responses[-1].output_tensors()
    return outputs


class TritonWriter:
    """A captioner.serving.forwarder.Writer over Triton's response sender."""

    def __init__(self, request: Any) -> None:
        self.sender = request.get_response_sender()

    def send(self, outputs: list[Any]) -> None:
        self._send(pb_utils.InferenceResponse(outputs))

    def fail(self, error: CaptionerError) -> None:
        wrapped = pb_utils.TritonError(error.wire(), getattr(pb_utils.TritonError, error.status))
        self._send(pb_utils.InferenceResponse(error=wrapped))

    def is_cancelled(self) -> bool:
        return bool(self.sender.is_cancelled())

    def _send(self, response: Any) -> None:
        self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
