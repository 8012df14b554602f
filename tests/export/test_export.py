"""Export a tiny model with the real exporter, and compare the exported files with the original."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from benchmarks.published import empty_repository
from captioner import wire
from captioner.artifacts.manifest import NAME, Manifest
from captioner.artifacts.repository_templates import CODE
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.embedded import EMBEDDED
from captioner.engine.engine import Engine
from captioner.engine.runner import Runner
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import Sequence
from captioner.errors import ArtefactBroken, ModelUnsupported
from captioner.examples import FOLDER
from captioner.families import family
from captioner.families.base import Source
from captioner.hub.resolve import find
from captioner.image.spec import ImageSpec
from captioner.machine import has_vnni
from captioner.publish.publish import export_and_publish, publish
from export import export as exporting
from export import parity
from export.export import export_decoder
from export.onnx_export import onnx_features
from tests.support import tiny
from tests.support.publishing import quiet

ROOT = Path(__file__).parents[2]
PUBLISHED = {
    "vision_encoder/model.onnx",
    "captioner/tokenizer.json",
    "captioner/check.jpg",
    "captioner/check.safetensors",
    "captioner/decoder/config.json",
    "captioner/decoder/generation_config.json",
    "captioner/decoder/model.safetensors",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    tiny.save_vision_encoder_decoder(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the exported model; tests that change it take a copy."""
    repository = empty_repository(tmp_path_factory.mktemp("exported"))
    log: list[str] = []
    assert export_into(repository, model, log.append) == 1
    assert log[-1].startswith("published: version 1, tiny@")
    return repository


def export_into(repository: Path, model: Path, log: Callable[[str], None] = quiet) -> int:
    return export_and_publish(find(str(model)), VersionStore(repository), (), log)


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "repository")


@pytest.fixture
def manifest(exported: Path) -> Manifest:
    return Manifest.load(exported / "captioner" / "1")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch, exported: Path) -> Iterator[None]:
    """Copy the graph of the first export: tracing it again takes most of an export's time."""

    def copy(source: Source, folder: Path, metadata: dict[str, str]) -> Path:
        return Path(shutil.copy2(exported / "vision_encoder" / "1" / "model.onnx", folder))

    monkeypatch.setattr(exporting, "export_vision_encoder", copy)
    return iter(())


def test_the_manifest_describes_the_exported_model(manifest: Manifest, model: Path) -> None:
    assert (manifest.family, manifest.model, manifest.card.license) == ("vision-encoder-decoder", "tiny", "mit")
    assert manifest.revision == find(str(model)).revision
    assert manifest.image == ImageSpec(32, 32, "bicubic")
    assert (manifest.feature_tokens, manifest.feature_width) == (17, tiny.FEATURE_WIDTH)
    assert (manifest.start_ids, manifest.stop_ids, manifest.context_tokens) == ((0,), (1,), tiny.CONTEXT)


def test_every_published_file_is_hashed_and_every_version_folder_has_the_manifest(exported: Path) -> None:
    manifests = {name: Manifest.load(exported / name / "1") for name in VERSIONED}
    assert set(manifests["captioner"].files) == PUBLISHED
    assert len({json.dumps(m.files) for m in manifests.values()}) == 1
    manifests["captioner"].verify(exported, "1")
    published = {
        str(path.relative_to(exported)).replace("/1/", "/")
        for path in exported.rglob("*")
        if path.is_file() and "/1/" in str(path) and path.name not in (*CODE, NAME) and path.suffix != ".pyc"
    }
    assert published == PUBLISHED


def test_the_version_folders_keep_their_models_code(exported: Path) -> None:
    for name in ("captioner", "preprocess"):
        assert (exported / name / "1" / "model.py").read_bytes() == (
            ROOT / "model_repository" / name / "1" / "model.py"
        ).read_bytes()
    assert not [path for path in exported.rglob(".*") if path.is_dir() and any(path.iterdir())], "no temporary files"


def test_published_files_can_be_read_by_another_user(exported: Path) -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in exported.rglob("*") if path.is_file())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_graph_reproduces_the_originals_features_at_any_batch_size(exported: Path, model: Path, batch: int) -> None:
    source = family("vision-encoder-decoder").load(model)
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = source.vision_encoder(torch.from_numpy(pixels)).numpy()
    found = onnx_features(exported / "vision_encoder" / "1" / "model.onnx", pixels)
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) <= 1e-5 * float(np.abs(expected).max())


def test_the_graph_has_the_tensors_of_the_wire_and_a_version_that_triton_loads(exported: Path, model: Path) -> None:
    graph = onnx.load(exported / "vision_encoder" / "1" / "model.onnx")
    onnx.checker.check_model(graph)
    for value, tensor in ((graph.graph.input[0], wire.PIXELS), (graph.graph.output[0], wire.FEATURES)):
        assert value.name == tensor.name
        dims = value.type.tensor_type.shape.dim
        assert [-1 if dim.dim_param else dim.dim_value for dim in dims] == [-1, *tensor.dims]
    assert graph.ir_version <= 10
    assert {entry.key: entry.value for entry in graph.metadata_props}["revision"] == find(str(model)).revision


def test_greedy_tokens_equal_those_of_generate(exported: Path, model: Path, manifest: Manifest) -> None:
    source = family(manifest.family).load(model)
    decoder = family(manifest.family).decoder(exported / "captioner" / "1", manifest, "fp32", torch.device("cpu"))
    pixels = np.random.default_rng(5).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    features = onnx_features(exported / "vision_encoder" / "1" / "model.onnx", pixels)
    engine = Engine(Runner(decoder, 3), manifest.stop_ids, max_waiting=4)
    sequences = [Sequence([0], Sampling(), 16, features=each) for each in torch.from_numpy(features)]
    for sequence in sequences:
        engine.admit(sequence)
        engine.submit(sequence)
    for _ in range(100):
        engine.step()
    for picture, sequence in zip(torch.from_numpy(pixels), sequences, strict=True):
        expected = source.generate(picture, [0], max_new_tokens=16, do_sample=False, num_beams=1)
        assert sequence.token_ids == [token for token in expected if token not in manifest.stop_ids]
    assert len({tuple(sequence.token_ids) for sequence in sequences}) == 4, "the image must matter"


@pytest.mark.parametrize("file", sorted(PUBLISHED))
def test_an_error_names_an_altered_file(repository: Path, manifest: Manifest, file: str) -> None:
    folder, _, name = file.partition("/")
    path = repository / folder / "1" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtefactBroken, match=name):
        manifest.verify(repository, "1")


def test_a_failed_export_leaves_the_published_version_unchanged(
    repository: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ArtefactBroken("greedy tokens differ")

    monkeypatch.setattr(exporting, "check_parity", fail)
    monkeypatch.setattr(
        exporting,
        "export_vision_encoder",
        lambda source, folder, metadata: shutil.copy2(repository / "vision_encoder" / "1" / "model.onnx", folder),
    )
    with pytest.raises(ArtefactBroken):
        export_into(repository, model)
    assert list(VersionStore(repository).versions()) == [1]
    Manifest.load(repository / "captioner" / "1").verify(repository, "1")


@pytest.mark.usefixtures("fast")
def test_a_manifest_of_an_older_format_does_not_prevent_an_export(repository: Path, model: Path) -> None:
    (repository / "captioner" / "1" / NAME).write_text("{}")
    assert export_into(repository, model) == 2


def test_an_export_that_differs_from_the_original_is_refused(exported: Path, model: Path, manifest: Manifest) -> None:
    source = family("vision-encoder-decoder").load(model)
    folder = exported / "captioner" / "1"
    graph = exported / "vision_encoder" / "1" / "model.onnx"
    found = parity.check_parity(source, graph, folder, manifest)
    assert found.difference.largest < 1e-5
    assert found.tokens > 20
    with torch.no_grad():
        for weight in source.decoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    with pytest.raises(ArtefactBroken, match="greedy tokens differ"):
        parity.check_parity(source, graph, folder, manifest)
    with torch.no_grad():
        next(source.vision_encoder.parameters()).mul_(2)
    with pytest.raises(ArtefactBroken, match="features differ by"):
        parity.check_parity(source, graph, folder, manifest)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelUnsupported, match=r"no \.safetensors"):
        find(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_decoder_is_written_in_the_type_that_its_authors_published(
    model: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = family("vision-encoder-decoder").load(model)
    for weight in source.decoder.parameters():
        weight.data = weight.data.to(dtype).float()  # as loaded from a file in that type
    export_decoder(source, tmp_path)
    written = load_file(tmp_path / "decoder" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values() if tensor.is_floating_point()} == {dtype}
    decoder = GPT2LMHeadModel.from_pretrained(tmp_path / "decoder", dtype=torch.float32)
    head, embedding = decoder.get_output_embeddings().weight, decoder.get_input_embeddings().weight
    assert torch.equal(embedding, source.decoder.get_input_embeddings().weight)  # type: ignore[arg-type]
    assert torch.equal(head, embedding), "tied weights were written apart"  # type: ignore[arg-type]
    assert not any(name.startswith("lm_head") for name in written)


def test_other_weights_are_another_revision(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "tiny")
    assert find(str(copy)).revision == find(str(model)).revision
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find(str(copy)).revision != find(str(model)).revision


@pytest.mark.usefixtures("fast")
def test_an_fp16_encoder_is_exported_and_recorded_in_the_manifest(model: Path, tmp_path: Path) -> None:
    log: list[str] = []
    manifest = exporting.export(find(str(model)), tmp_path / "exported", log.append, precision="fp16")
    assert manifest.precision == "fp16"
    assert "converting the vision encoder to fp16" in log
    Manifest.load(tmp_path / "exported" / "captioner").verify(tmp_path / "exported")
    types = {each.data_type for each in onnx.load(tmp_path / "exported/vision_encoder/model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(has_vnni(), reason="int8 is exact here")
def test_without_vnni_the_embedded_model_in_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactBroken, match=r"in int8 the .* cosine .* not have VNNI, .* try fp16"):
        exporting.export(find(EMBEDDED), tmp_path / "exported", quiet, precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(not has_vnni(), reason="sums of int8 products overflow here")
def test_the_embedded_model_in_int8_is_a_third_as_large_and_still_captions_a_cat(tmp_path: Path) -> None:
    from captioner.serving.in_process import InProcessModel

    exported, repository = tmp_path / "exported", empty_repository(tmp_path / "model_repository")
    manifest = exporting.export(find(EMBEDDED), exported, quiet, precision="int8")
    assert manifest.precision == "int8"
    assert manifest.golden_sample is not None and "cat" in manifest.golden_sample.caption
    weights = sum(path.stat().st_size for path in exported.glob("vision_encoder/model.onnx*"))
    assert weights < 12e6, "33 MB in fp32"
    publish(exported, VersionStore(repository), (), quiet)
    served = InProcessModel(repository, in_flight=1, threads=1)
    assert "cat" in served.caption((FOLDER / "cat.jpg").read_bytes(), {}).text
    served.close()
