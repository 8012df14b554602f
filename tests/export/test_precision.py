"""Small encoders of both kinds, transformer and convolutional, exported and converted to fp16 and int8."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import ViTConfig, ViTModel

import captioner
from benchmarks import precision as benchmark
from benchmarks.encoder_variants import EncoderVariants
from captioner import wire
from captioner.errors import ArtefactBroken, ModelUnsupported
from captioner.families.base import Source
from captioner.image.spec import ImageSpec
from captioner.wire import EncoderPrecision
from export import onnx_export as exporter
from export import precision, quantize_int8
from export.calibration_images import HELD_OUT, calibration_pixels
from export.onnx_export import onnx_features
from export.precision import LIMITS, check, compare, convert_precision

SPEC = ImageSpec(32, 32, "bicubic")
METADATA = {"model": "tiny", "revision": "0" * 40}
CONVERTED = [(kind, to) for kind in ("transformer", "convolutional") for to in ("fp16", "int8")]


class Transformer(torch.nn.Module):
    """A ViT with 1.8 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViTModel(
            ViTConfig(
                hidden_size=192,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=768,
                image_size=32,
                patch_size=8,
                initializer_range=0.1,
            ),
            add_pooling_layer=False,
        )

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, 32, 32, 3) uint8 → (B, 17, 192) float32."""
        features: torch.Tensor = self.vit((pixels_BHWC.float().permute(0, 3, 1, 2) - 127) / 64).last_hidden_state
        return features


class Convolutional(torch.nn.Module):
    """Like the embedded encoder: normalized blocks with ReLU6, a depthwise one, a residual sum, ranked words."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.block(3, 64, stride=2)
        self.wide = self.block(64, 256, stride=2)
        self.deep = self.block(256, 256, groups=256)
        self.last = self.block(256, 512)
        self.head = torch.nn.Linear(512, 128)
        self.words = torch.nn.Embedding(128, 512)

    @staticmethod
    def block(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> torch.nn.Sequential:
        """Return a convolution block whose output has about the magnitude of its input."""
        norm = torch.nn.BatchNorm2d(outputs)
        torch.nn.init.uniform_(norm.weight, 1, 3)
        torch.nn.init.uniform_(norm.bias, 0, 2)
        convolution = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
        torch.nn.init.kaiming_normal_(convolution.weight)
        return torch.nn.Sequential(convolution, norm, torch.nn.ReLU6())

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, 32, 32, 3) uint8 → (B, 64 + 4, 512) float32."""
        seen = self.wide(self.stem((pixels_BHWC.float().permute(0, 3, 1, 2) - 127) / 64))
        grid_BGC = self.last(seen + self.deep(seen)).flatten(2).transpose(1, 2)
        value, word = self.head(grid_BGC.mean(1)).softmax(-1).topk(4)
        words_BKC = self.words(word) + value.clamp_min(1e-4).log()[..., None]
        return torch.cat([grid_BGC, words_BKC], 1)


Kinds = dict[str, tuple[torch.nn.Module, Path]]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    """Each kind's module and its graph in fp32."""
    made: Kinds = {}
    for name, kind in (("transformer", Transformer), ("convolutional", Convolutional)):
        torch.manual_seed(3)
        encoder = kind().eval()
        source = cast(Source, SimpleNamespace(vision_encoder=encoder, image=SPEC))
        made[name] = encoder, exporter.export_vision_encoder(source, tmp_path_factory.mktemp(name), METADATA)
    return made


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return calibration_pixels(SPEC)


Convert = Callable[[str, EncoderPrecision], Path]


@pytest.fixture(scope="module")
def converted(kinds: Kinds, pixels: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """`converted(kind, precision)`: the converted graph, cached; tests that change it take a copy."""
    made: dict[tuple[str, EncoderPrecision], Path] = {}

    def make(kind: str, to: EncoderPrecision) -> Path:
        if (kind, to) not in made:
            path = Path(shutil.copy2(kinds[kind][1], tmp_path_factory.mktemp(to)))
            convert_precision(path, to, pixels[:-HELD_OUT], lambda _: None)
            made[kind, to] = path
        return made[kind, to]

    return make


def original(encoder: torch.nn.Module, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        features: NDArray[np.float32] = encoder(torch.from_numpy(pixels_BHWC)).numpy()
    return features


@pytest.mark.parametrize(("kind", "to"), CONVERTED)
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_features_stay_within_the_limits_at_any_batch(
    kinds: Kinds, converted: Convert, pixels: NDArray[np.uint8], kind: str, to: EncoderPrecision, batch: int
) -> None:
    unseen = pixels[-batch:]
    expected, found = original(kinds[kind][0], unseen), onnx_features(converted(kind, to), unseen)
    assert found.dtype == np.float32
    assert check(expected, found, to).typical < 1, "the features must have been rounded"


@pytest.mark.parametrize(("kind", "to"), CONVERTED)
def test_a_converted_graph_has_the_inputs_outputs_and_metadata_of_the_exported_one(
    kinds: Kinds, converted: Convert, kind: str, to: EncoderPrecision
) -> None:
    before, after = onnx.load(kinds[kind][1]), onnx.load(converted(kind, to))
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    session = onnxruntime.InferenceSession(converted(kind, to), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == METADATA
    assert [path.name for path in converted(kind, to).parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("kind", "to"), CONVERTED)
def test_a_converted_graph_needs_no_newer_onnx_runtime_than_the_exported_one(
    converted: Convert, kind: str, to: EncoderPrecision
) -> None:
    model = onnx.load(converted(kind, to))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", exporter.OPSET)]
    assert model.ir_version <= exporter.MAX_IR_VERSION


def test_a_clip_with_one_bound_stays_in_fp32_as_onnx_runtime_1_19_reads_the_other_as_zero(
    converted: Convert,
) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(converted("convolutional", "fp16"))).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    clips = [node for node in graph.node if node.op_type == "Clip"]
    with_one = [types[node.output[0]] for node in clips if len(node.input) < 3 or not all(node.input)]
    assert with_one == [onnx.TensorProto.FLOAT]
    assert len(clips) > 1


@pytest.mark.parametrize(("kind", "to"), CONVERTED)
def test_the_embedded_onnxruntime_backend_accepts_a_converted_graph(
    converted: Convert, kind: str, to: EncoderPrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.TritonModelException = RuntimeError
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    path = Path(captioner.__file__).parent / "launcher" / "backends" / "onnxruntime" / "model.py"
    spec = importlib.util.spec_from_file_location("stand_in", path)
    assert spec is not None and spec.loader is not None
    backend: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    session = onnxruntime.InferenceSession(converted(kind, to), providers=["CPUExecutionProvider"])
    encoder = wire.MODELS[wire.VISION_ENCODER]
    config = {"name": wire.VISION_ENCODER, "max_batch_size": 16}
    for side, tensors in (("input", encoder.inputs), ("output", encoder.outputs)):
        config[side] = [vars(tensor) for tensor in tensors]
    backend.check(config, "input", session.get_inputs())
    backend.check(config, "output", session.get_outputs())


@pytest.mark.parametrize("kind", ["transformer", "convolutional"])
def test_the_weights_shrink_with_the_precision(kinds: Kinds, converted: Convert, kind: str) -> None:
    whole = kinds[kind][1].stat().st_size
    assert converted(kind, "fp16").stat().st_size < 0.55 * whole
    assert converted(kind, "int8").stat().st_size < 0.35 * whole


def test_transformers_are_quantized_dynamically_and_convolutional_encoders_statically(converted: Convert) -> None:
    used = {
        kind: Counter(node.op_type for node in onnx.load(converted(kind, "int8")).graph.node)
        for kind in ("transformer", "convolutional")
    }
    assert used["transformer"]["MatMulInteger"] == 4 * 6
    assert not used["transformer"]["QuantizeLinear"]
    assert used["convolutional"]["QuantizeLinear"] >= 4
    assert not used["convolutional"]["DynamicQuantizeLinear"]


def test_a_convolutional_encoder_in_int8_gives_the_same_features_in_any_batch(
    converted: Convert, pixels: NDArray[np.uint8]
) -> None:
    path = converted("convolutional", "int8")
    together = onnx_features(path, pixels[:7])
    alone = np.concatenate([onnx_features(path, pixels[number : number + 1]) for number in range(7)])
    assert compare(alone, together).largest < 1e-5


def test_bias_correction_removes_most_of_the_noise_of_rounded_weights(kinds: Kinds, pixels: NDArray[np.uint8]) -> None:
    def rounded(model: onnx.ModelProto) -> NDArray[np.float32]:
        kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
        for tensor in model.graph.initializer:
            if tensor.name in kernels:
                weight = onnx.numpy_helper.to_array(tensor)
                scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.round(weight / scale) * scale, tensor.name))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        features: NDArray[np.float32] = session.run(None, {wire.PIXELS.name: pixels[-HELD_OUT:]})[0]
        return features[:, :64]  # of the grid, without the concept words

    encoder, path = kinds["convolutional"]
    expected = original(encoder, pixels[-HELD_OUT:])[:, :64]
    corrected = onnx.load(path)
    quantize_int8.correct_biases(corrected, pixels[:-HELD_OUT])
    noise = [1 - compare(expected, rounded(model)).mean for model in (onnx.load(path), corrected)]
    assert noise[1] < 0.7 * noise[0]


@pytest.mark.parametrize(("to", "instead"), [("fp32", None), ("fp16", "fp32"), ("int8", "fp16")])
def test_features_beyond_a_limit_are_refused_with_the_number_and_the_precision_to_try(
    kinds: Kinds,
    converted: Convert,
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    to: EncoderPrecision,
    instead: str | None,
) -> None:
    path = Path(shutil.copy2(kinds["transformer"][1] if to == "fp32" else converted("transformer", to), tmp_path))
    model = onnx.load(path)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 10_000]
    weights[-1].raw_data = bytes(len(weights[-1].raw_data))
    onnx.save(model, path)
    expected, found = (
        original(kinds["transformer"][0], pixels[-HELD_OUT:]),
        onnx_features(path, pixels[-HELD_OUT:]),
    )
    number = compare(expected, found)
    named = f"{number.largest:.1e} .* 1e-04$" if instead is None else f"{number.typical:.5f}; .* try {instead}$"
    with pytest.raises(ArtefactBroken, match=named):
        check(expected, found, to)


def test_features_that_are_nan_or_of_another_shape_are_refused() -> None:
    features = np.ones((1, 4, 8), np.float32)
    with pytest.raises(ArtefactBroken, match="nan"):
        check(features, features * np.float32("nan"), "fp16")
    with pytest.raises(ArtefactBroken, match=r"shape \(1, 3, 8\); the original's have \(1, 4, 8\)"):
        check(features, features[:, 1:], "int8")


def test_without_vnni_the_refusal_of_int8_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(1, 4, 8)).astype(np.float32)
    monkeypatch.setattr(precision, "has_vnni", lambda: False)
    with pytest.raises(ArtefactBroken, match=r"does not have VNNI, .* try fp16$"):
        check(features, -features, "int8")


def test_a_few_concept_words_of_another_rank_pass_but_many_do_not() -> None:
    expected = np.random.default_rng(0).normal(size=(2, 50, 64)).astype(np.float32)
    found = expected.copy()
    found[:, [0, 1]] = expected[:, [1, 0]]
    assert check(expected, found, "int8").typical == pytest.approx(1)
    found[:, :10] = expected[:, 10:20]
    with pytest.raises(ArtefactBroken, match="the mean cosine"):
        check(expected, found, "int8")


def test_limits_are_wider_for_lower_precisions() -> None:
    limits = [LIMITS[name] for name in precision.PRECISIONS]
    assert limits == sorted(limits, key=lambda limit: (-limit.typical, -limit.mean))


@pytest.mark.parametrize("to", ["fp16", "int8"])
def test_weights_in_a_second_file_are_converted_too(
    kinds: Kinds, pixels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: EncoderPrecision
) -> None:
    encoder, exported = kinds["transformer"]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(exported), path, save_as_external_data=True, location="weights.bin")
    monkeypatch.setattr(precision, "SINGLE_FILE_LIMIT_BYTES", 2_500_000)  # between fp16's 3.6 MB and int8's 1.8
    convert_precision(path, to, pixels, lambda _: None)
    written = {file.name for file in tmp_path.iterdir()}
    assert written == ({"model.onnx", "model.onnx.data"} if to == "fp16" else {"model.onnx"})
    check(original(encoder, pixels[:3]), onnx_features(path, pixels[:3]), to)


def test_fp32_is_left_unchanged(kinds: Kinds, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    path = Path(shutil.copy2(kinds["transformer"][1], tmp_path))
    before = path.read_bytes()
    convert_precision(path, "fp32", pixels, lambda _: None)
    assert path.read_bytes() == before


def test_a_graph_without_weights_cannot_be_quantized(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Cast", ["pixels"], ["features"], to=onnx.TensorProto.FLOAT)],
        "graph",
        [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, [None, None, None, 3])],
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [None, None, None, 3])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    with pytest.raises(ModelUnsupported, match="int8"):
        convert_precision(path, "int8", pixels, lambda _: None)


def test_calibration_logs_its_progress(kinds: Kinds, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    log: list[str] = []
    convert_precision(Path(shutil.copy2(kinds["convolutional"][1], tmp_path)), "int8", pixels[:12], log.append)
    assert log == [
        "converting the vision encoder to int8",
        "calibrating: 8 of 12 photos",
        "calibrating: 12 of 12 photos",
    ]


def test_the_benchmark_measures_every_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "IMAGES", 9)
    reports = benchmark.measure(EncoderVariants("vit-gpt2", tmp_path, 1, "tiny"), None, rounds=2)
    assert [report.precision for report in reports] == list(precision.PRECISIONS)
    assert (reports[0].equal_captions, reports[0].shared_words, reports[0].speedup[8]) == (1, 1, [1, 1])
    assert reports[0].difference.typical > reports[1].difference.typical > reports[2].difference.typical > 0.99
    assert len(benchmark.table(reports).splitlines()) == 5
