"""Imports run one way: which room may import which, held by reading every import statement with `ast`.

A room is a folder of `captioner/` (or a module beside them), `export`, `frontend`, `training` or `benchmarks`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = ("captioner", "export", "frontend", "training", "benchmarks")
# room → the rooms it may import; itself is always allowed.
MAY_IMPORT = {
    "errors": "",
    "wire": "errors",
    "machine": "",
    "parent": "",
    "hashing": "",
    "examples": "",
    "embedded": "",
    "image": "wire errors",
    "client": "image.formats image.limits wire errors",
    "artifacts": "image wire hashing errors",
    "decoders": "artifacts errors",
    "engine": "decoders.base decoders.kv_cache decoders.rows errors",
    "families": "decoders artifacts image embedded wire errors",
    "serving": "engine families decoders artifacts image wire machine errors",
    "hub": "embedded hashing errors families",
    "export": "families decoders engine artifacts image hub embedded examples machine wire errors",
    "publish": "export artifacts client hub embedded wire errors",
    "launcher": "publish artifacts client machine parent wire errors",
    "bulk": "client artifacts image.formats image.limits serving.in_process wire errors",
    "frontend": "client artifacts.prompts artifacts.languages image.formats image.limits examples wire errors",
    "doctor": "*",
    "cli": "*",
    "training": "*",
    "benchmarks": "*",
}
ENTRY_POINTS = ("export.__main__",)  # run, never imported
HEAVY = ("PIL", "torch", "transformers")


def modules() -> Iterator[tuple[str, Path]]:
    """Every module by its dotted name."""
    for top in TOP:
        for path in (ROOT / top).rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported(path: Path) -> Iterator[str]:
    """The dotted names of our own modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in TOP)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in TOP:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def inner(module: str) -> str:
    """The module's name without `captioner.`: its room comes first."""
    return module.removeprefix("captioner.")


def room(module: str) -> str:
    return inner(module).split(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    allowed = MAY_IMPORT.get(room(module), "").split()
    if "*" in allowed or module in ENTRY_POINTS or module == "captioner":
        return
    for target in imported(MODULES[module]):
        known = target == "captioner" or room(target) == room(module)
        known = known or any(inner(target) == each or inner(target).startswith(f"{each}.") for each in allowed)
        assert known, f"{module} imports {target}; {room(module)} may import {', '.join(allowed) or 'nothing'}"


def test_every_room_has_a_rule() -> None:
    assert {room(module) for module in MODULES} - {"captioner"} == set(MAY_IMPORT)


def test_no_imports_form_a_circle() -> None:
    edges = {name: {each for each in imported(path) if each != name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(edges.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


@pytest.mark.parametrize("package", ["captioner.client", "frontend", "frontend.serve", "captioner.cli"])
def test_what_runs_beside_the_server_starts_without_pillow_and_torch(package: str) -> None:
    heavy = HEAVY[1:] if package == "frontend.serve" else HEAVY  # Gradio itself imports Pillow
    code = f"import sys, {package}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
