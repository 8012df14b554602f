"""`captioner check`: a verdict on a folder or a Hub model from what lies beside its weights, and what it would take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from benchmarks import seeded
from captioner.cli import main
from captioner.embedded import EMBEDDED
from captioner.errors import ModelUnsupported
from captioner.families import family
from captioner.hub.pull import INDEX, SINGLE, pull
from captioner.hub.weights import Tensor, read_tensors
from export.check import measure
from tests.support.hub_files import CONFIG, MODEL
from tests.support.hub_server import Hub

HEADER_BYTES = 100_001  # of a file, which huggingface_hub asks for first
PROCESSOR = "preprocessor_config.json"

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Return a function that runs the verb with --json, asserts its exit code, and returns what it prints."""

    def check(model: object, code: int = 0) -> dict[str, Any]:
        assert main(["check", str(model), "--json"]) == code
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert facts["can_be_served"] == (code == 0)
        return facts

    return check


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def changed(files: dict[str, bytes], name: str, **values: object) -> dict[str, bytes]:
    return files | {name: json.dumps(json.loads(files[name]) | values).encode()}


def sharded(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the model with its weights in two shards."""
    tensors = load(files[SINGLE])
    shards: dict[str, dict[str, torch.Tensor]] = {"model-1-of-2.safetensors": {}, "model-2-of-2.safetensors": {}}
    for number, (name, tensor) in enumerate(tensors.items()):
        list(shards.values())[number % 2][name] = tensor
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    others = {name: data for name, data in files.items() if name != SINGLE}
    return others | {shard: save(part) for shard, part in shards.items()} | {INDEX: json.dumps(index).encode()}


@pytest.mark.parametrize("form", ["one file", "shards"])
def test_a_hub_model_is_checked_by_its_small_files_and_the_headers_of_its_weights(
    hub: Hub, tiny_files: dict[str, bytes], check: Check, form: str
) -> None:
    padding = {"padding": torch.zeros(100_000)}
    files = tiny_files | {SINGLE: save(load(tiny_files[SINGLE]) | padding)}
    files = sharded(files) if form == "shards" else files
    commit = hub.commit(MODEL, files)
    facts = check(f"{MODEL}@main")
    assert (facts["model"], facts["revision"], facts["family"]) == (MODEL, commit, "vision-encoder-decoder")
    assert (facts["outline"]["image"]["width"], facts["card"]["license"]) == (32, "mit")
    count = sum(tensor.numel() for tensor in load(tiny_files[SINGLE]).values()) + 100_000
    assert facts["weights"]["encoder_parameters"] + facts["weights"]["decoder_parameters"] == count
    weights = [name for name in files if name.endswith(".safetensors")]
    assert all(0 < hub.sent(name) <= HEADER_BYTES for name in weights)
    snapshot = hub.home / "hub" / "models--tiny--captioner" / "snapshots" / commit
    assert {path.name for path in snapshot.iterdir()} == files.keys() - set(weights)
    assert pull(MODEL).files.keys() == files.keys(), "a check does not count as a pull"


def test_a_pulled_model_is_checked_without_a_network(hub: Hub, tiny_files: dict[str, bytes], check: Check) -> None:
    commit = hub.commit(MODEL, tiny_files)
    pull(MODEL)
    hub.stop()
    for name in (MODEL, f"{MODEL}@{commit}"):
        assert check(name)["revision"] == commit


def test_the_reason_of_a_refusal_is_the_one_of_the_export(
    hub: Hub, tiny_files: dict[str, bytes], check: Check, tmp_path: Path
) -> None:
    files = changed(tiny_files, PROCESSOR, resample=4)
    hub.commit(MODEL, files)
    folder = write(tmp_path / "model", files)
    with pytest.raises(ModelUnsupported) as refused:
        family("vision-encoder-decoder").load(folder)
    for name in (MODEL, folder):
        facts = check(name, 1)
        assert (facts["code"], facts["reason"]) == (refused.value.code, str(refused.value))
        assert facts["weights"]["decoder_parameters"] > 0, "the rest is known all the same"


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda files: changed(files, CONFIG, model_type="bert"), "MODEL_UNSUPPORTED", "'bert' has no family"),
        (lambda files: files | {CONFIG: b"{}"}, "MODEL_UNSUPPORTED", "no model_type"),
        (lambda files: files | {SINGLE: b"\x08\x00\x00\x00\x00\x00\x00\x00{"}, "ARTEFACT_BROKEN", "the header of"),
        (lambda files: without(files, SINGLE), "MODEL_UNSUPPORTED", "has no .safetensors file"),
        (lambda files: without(files, "tokenizer.json"), "MODEL_UNSUPPORTED", "cannot be loaded"),
        (lambda files: without(sharded(files), "model-2-of-2.safetensors"), "MODEL_UNSUPPORTED", "cannot be loaded"),
    ],
)
def test_a_folder_that_cannot_be_served_is_told_with_its_reason(
    tiny_files: dict[str, bytes], check: Check, tmp_path: Path, change: Any, code: str, reason: str
) -> None:
    facts = check(write(tmp_path / "model", change(tiny_files)), 1)
    assert facts["code"] == code and reason in facts["reason"]


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


def test_a_hub_model_of_pickles_is_refused_by_its_listing_alone(hub: Hub, check: Check) -> None:
    hub.commit(MODEL, {CONFIG: b"{}", "pytorch_model.bin": b"pickle"})
    assert "pickles can run code" in check(MODEL, 1)["reason"]
    assert hub.bodies(CONFIG) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [("tiny/none", "MODEL_MISSING"), ("tiny/gated", "ACCESS_DENIED"), (f"{EMBEDDED}@main", "MODEL_MISSING")],
)
def test_where_nothing_can_be_said_the_exit_code_is_2(
    hub: Hub, tiny_files: dict[str, bytes], name: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.commit("tiny/gated", tiny_files)
    hub.close_to("tiny/gated", "gated", "hf_right")
    assert main(["check", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1].startswith(f"{code}: ")


def test_without_json_the_verdict_is_a_sentence_and_a_line_for_each_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", EMBEDDED]) == 0
    head, *facts = capsys.readouterr().out.splitlines()
    assert head == f"{EMBEDDED} can be served"
    named = dict(line.strip().split(":", 1) for line in facts)
    assert list(named) == [
        "family", "parameters", "encoder", "decoder", "image", "context", "prompts", "license"
    ]  # fmt: skip
    assert named["image"].strip() == "260 x 260 px" and "MiB in nf4" in named["decoder"]


def test_memory_is_that_of_quantized_linear_layers_and_of_all_other_weights_in_16_bits() -> None:
    layer = "language_model.model.layers.0.mlp.up_proj"
    weights = measure(
        {
            "vision_tower.layers.0.weight": Tensor("BF16", (10, 10)),
            "language_model.model.embed_tokens.weight": Tensor("BF16", (50, 4)),
            f"{layer}.weight": Tensor("BF16", (64, 10)),
            f"{layer}.bias": Tensor("BF16", (64,)),
        }
    )
    assert (weights.encoder_parameters, weights.decoder_parameters) == (100, 904)
    assert weights.encoder_bytes == {"fp32": 400, "fp16": 200, "int8": 100}
    assert weights.decoder_bytes == {"fp32": 3616, "bf16": 1808, "int8": 640 + 528, "nf4": 360 + 528}


@pytest.mark.parametrize("name", ["vit-gpt2", "blip", "llava", "smolvlm"])
def test_the_decoders_parameters_are_those_of_the_exported_decoder(name: str, tmp_path: Path) -> None:
    seeded.save(name, tmp_path, "tiny")
    source = family(json.loads((tmp_path / CONFIG).read_text())["model_type"]).load(tmp_path)
    found = measure(read_tensors(tmp_path / SINGLE))
    assert found.decoder_parameters == sum(weights.numel() for weights in source.decoder.parameters())
    assert found.encoder_parameters >= sum(weights.numel() for weights in source.vision_encoder.parameters())
