"""The manifest: the exporter writes it, the server reads and verifies it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from captioner.artifacts.confidence import Calibration
from captioner.artifacts.manifest import NAME, Card, Generation, GoldenSample, Manifest, sha256
from captioner.artifacts.prompts import PromptTable
from captioner.errors import ArtefactBroken
from captioner.image.spec import ImageSpec

MANIFEST = Manifest(
    family="vision-encoder-decoder",
    model="a/b",
    revision="0" * 40,
    card=Card("mit", "org/base", "For tests."),
    precision="fp32",
    image=ImageSpec(32, 48, "bicubic"),
    feature_tokens=5,
    feature_width=32,
    prompts=PromptTable({"plain": {"any": "写真 für {name}"}}, "plain", "any", {"camera": "x"}),
    system_template="",
    prompt_template="<s>{image}{prompt}",
    image_token_id=7,
    start_ids=(0, 4),
    stop_ids=(1,),
    context_tokens=48,
    generation=Generation(max_tokens=20, repetition_penalty=1.1, num_beams=3),
    calibration=Calibration(2.5, 0.5, 0.6),
    golden_sample=GoldenSample((0, 4), (2, 3), "a cat"),
    files={},
)


def test_a_manifest_round_trips(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST


def test_a_manifest_is_read_whatever_the_servers_locale(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    code = (
        "import sys, pathlib; from captioner.artifacts.manifest import Manifest as M; M.load(pathlib.Path(sys.argv[1]))"
    )
    # As in Triton's stub: the C locale, without the settings that make Python use UTF-8.
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True, timeout=60)


def test_the_error_for_a_folder_without_a_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtefactBroken, match=r"manifest\.json is missing.*make export"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "{}", '"x"', "\x00"])
def test_the_error_for_a_file_that_is_not_a_manifest_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ArtefactBroken, match=r"manifest\.json"):
        Manifest.load(tmp_path)


def test_the_error_for_another_format_names_the_fields_that_differ(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    values = json.loads((tmp_path / NAME).read_text("utf-8"))
    values["colour"] = values.pop("card")
    (tmp_path / NAME).write_text(json.dumps(values))
    with pytest.raises(ArtefactBroken, match="differ in card, colour; export again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("image", {"height": 1, "width": 2, "depth": 3}, "depth"),
        ("prompts", {"styles": {}}, "default_style"),
        ("stop_ids", 1, "int"),
    ],
)
def test_the_error_for_a_nested_field_of_another_format_names_it(
    tmp_path: Path, key: str, value: object, named: str
) -> None:
    MANIFEST.save(tmp_path)
    values = json.loads((tmp_path / NAME).read_text("utf-8")) | {key: value}
    (tmp_path / NAME).write_text(json.dumps(values))
    with pytest.raises(ArtefactBroken, match=named):
        Manifest.load(tmp_path)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two published files."""
    for name in ("captioner/3/tokenizer.json", "captioner/3/decoder/model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
    return tmp_path


def published(repository: Path) -> Manifest:
    version = repository / "captioner" / "3"
    files = {f"captioner/{path.relative_to(version)}": sha256(path) for path in version.rglob("*") if path.is_file()}
    return replace(MANIFEST, files=files)


def test_unchanged_files_pass_verification(repository: Path) -> None:
    assert len(published(repository).files) == 2
    published(repository).verify(repository, "3")


@pytest.mark.parametrize("file", ["tokenizer.json", "decoder/model.safetensors"])
def test_the_error_for_one_altered_byte_names_the_file(repository: Path, file: str) -> None:
    manifest, path = published(repository), repository / "captioner" / "3" / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactBroken, match=f"{file} has sha256"):
        manifest.verify(repository, "3")


def test_the_error_for_a_missing_file_names_it(repository: Path) -> None:
    manifest = published(repository)
    (repository / "captioner" / "3" / "tokenizer.json").unlink()
    with pytest.raises(ArtefactBroken, match=r"tokenizer\.json is missing"):
        manifest.verify(repository, "3")
