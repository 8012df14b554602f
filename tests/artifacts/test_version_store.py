"""The committed model repository says the same as the wire, and its code only translates."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from captioner.serving.settings import Settings
from captioner.wire import CAPTIONER, MODELS, Tensor

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
CODE = sorted(REPOSITORY.glob("*/1/model.py"))
MODULES = sorted((ROOT / "captioner").rglob("*.py"))


def config(model: str) -> Any:
    path = REPOSITORY / model / "config.pbtxt"
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def imports(path: Path) -> set[str]:
    """The top-level names of what a file imports."""
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


def test_the_repository_holds_the_models_of_the_wire_and_no_others() -> None:
    assert {path.name for path in REPOSITORY.glob("[!.]*") if path.is_dir()} == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_a_config_has_exactly_the_tensors_of_the_wire(model: str) -> None:
    found = config(model)
    assert found.name == model
    assert tensors(found.input) == list(MODELS[model].inputs)
    assert tensors(found.output) == list(MODELS[model].outputs)


@pytest.mark.parametrize("model", MODELS)
def test_only_the_entry_streams(model: str) -> None:
    assert config(model).model_transaction_policy.decoupled == (model == CAPTIONER)
    assert (config(model).max_batch_size == 0) == (model == CAPTIONER), "the engine batches for itself"


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_instance_group_counts(model: str) -> None:
    groups = config(model).instance_group
    assert groups
    assert all(group.count >= 1 for group in groups), "without a count, Triton starts two of some backends"


def test_the_settings_in_the_entrys_config_are_settings() -> None:
    parameters = config(CAPTIONER).parameters
    Settings.parse({key: parameters[key].string_value for key in parameters})


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.parts[-3])
def test_a_model_file_is_short_and_takes_only_the_installed_package(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 100, f"{len(text.splitlines())} lines: model.py only translates"
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
def test_the_package_knows_triton_only_in_its_backends(path: Path) -> None:
    text = path.read_text()
    if "backends" not in path.parts:
        assert "triton_python_backend_utils" not in imports(path)
    assert "sys.path" not in text


def test_importing_the_package_brings_nothing_heavy() -> None:
    assert imports(ROOT / "captioner" / "__init__.py") <= {"__future__"}


def test_the_scheduler_and_the_wire_know_neither_torch_nor_triton() -> None:
    for name in ("engine/scheduler.py", "wire.py", "errors.py", "artifacts/prompts.py", "serving/settings.py"):
        assert not imports(ROOT / "captioner" / name) & {"torch", "transformers", "tritonclient", "numpy"}, name
