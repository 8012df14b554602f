"""The registry of families finds a family by its model type and imports no other family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.errors import ModelUnsupported
from captioner.families import FAMILIES, family

ROOT = Path(__file__).parents[2]


def test_an_unknown_model_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelUnsupported) as refused:
        family("none-such")
    assert "'none-such'" in str(refused.value)
    assert all(name in str(refused.value) for name in FAMILIES)


def test_looking_up_a_family_imports_only_its_own_module() -> None:
    code = (
        "import json, sys; from captioner.families import FAMILIES, family; before = 'torch' in sys.modules;"
        "family('blip'); print(json.dumps([before, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    torch_before, modules = json.loads(done.stdout)
    assert not torch_before, "importing the registry must not import torch"
    names = {path.partition(":")[0] for path in FAMILIES.values()}
    assert {name for name in names if f"captioner.families.{name}" in modules} == {"blip"}
    assert "captioner.decoders.prefix" not in modules
