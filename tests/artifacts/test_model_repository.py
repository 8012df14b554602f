"""The committed model repository: its configs match the wire, and its code only translates."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from captioner.serving.settings import Settings
from captioner.wire import CAPTIONER, MODELS, UNARY, Tensor

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
CODE = sorted(REPOSITORY.glob("*/1/model.py"))
MODULES = sorted((ROOT / "captioner").rglob("*.py"))


def config(model: str) -> Any:
    path = REPOSITORY / model / "config.pbtxt"
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def tensors(found: Any) -> list[Tensor]:
    return [
        Tensor(
            one.name, model_config_pb2.DataType.Name(one.data_type), tuple(one.dims), getattr(one, "optional", False)
        )
        for one in found
    ]


def test_the_repository_has_exactly_the_models_of_the_wire() -> None:
    assert {path.name for path in REPOSITORY.glob("[!.]*") if path.is_dir()} == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_a_config_has_exactly_the_tensors_of_the_wire(model: str) -> None:
    found = config(model)
    assert found.name == model
    assert tensors(found.input) == [replace(each, max_length=None) for each in MODELS[model].inputs]
    assert tensors(found.output) == list(MODELS[model].outputs)


@pytest.mark.parametrize("model", MODELS)
def test_only_the_captioner_is_decoupled_and_only_captions_are_unbatched(model: str) -> None:
    assert config(model).model_transaction_policy.decoupled == (model == CAPTIONER)
    assert (config(model).max_batch_size == 0) == (model in (CAPTIONER, UNARY)), "the engine batches for itself"


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_instance_group_has_a_count(model: str) -> None:
    groups = config(model).instance_group
    assert groups
    assert all(group.count >= 1 for group in groups), "without a count, Triton starts two instances of some backends"


def test_the_parameters_in_the_captioners_config_are_settings() -> None:
    parameters = config(CAPTIONER).parameters
    Settings.parse({key: parameters[key].string_value for key in parameters})


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.parts[-3])
def test_a_model_file_is_short_and_imports_only_the_installed_package(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 110, f"{len(text.splitlines())} lines: model.py only translates"
    assert "sys.path" not in text
    assert imports(path) <= {
        "captioner",
        "functools",
        "json",
        "logging",
        "numpy",
        "os",
        "pathlib",
        "triton_python_backend_utils",
        "typing",
        "__future__",
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_backends_import_tritons_python_api(path: Path) -> None:
    text = path.read_text()
    if "backends" not in path.parts:
        assert "triton_python_backend_utils" not in imports(path)
    assert "sys.path" not in text


def test_the_top_level_package_imports_nothing() -> None:
    assert imports(ROOT / "captioner" / "__init__.py") <= {"__future__", "os"}


def test_the_scheduler_and_the_wire_import_neither_torch_nor_triton() -> None:
    modules = [ROOT / "captioner" / name for name in ("errors.py", "engine/scheduler.py", "artifacts/prompts.py")]
    modules += [ROOT / "captioner" / "serving" / "settings.py", *(ROOT / "captioner" / "wire").glob("*.py")]
    for path in modules:
        assert not imports(path) & {"torch", "transformers", "tritonclient", "numpy"}, path
