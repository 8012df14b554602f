"""`--help` is complete and quick: every verb, every option with a help text, no heavy import."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from captioner.cli import VERBS, main, parser

HEAVY = (
    "torch",
    "transformers",
    "gradio",
    "ray",
    "grpc",
    "tritonclient",
    "numpy",
    "PIL",
    "onnxruntime",
    "shtab",
    "tqdm",
)


def verbs() -> dict[str, argparse.ArgumentParser]:
    (group,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(group.choices)


def test_help_lists_every_verb_with_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name in verbs():
        (at,) = (number for number, line in enumerate(lines) if line.split()[:1] == [name] and line.startswith("    "))
        described = lines[at].split()[1:] or lines[at + 1].split()
        assert described, f"{name} has no description"
    assert len(verbs()) == len(VERBS)


@pytest.mark.parametrize("name", verbs())
def test_the_help_of_every_verb_describes_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: captioner {name}" in shown
    for action in verbs()[name]._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            assert action.option_strings[-1] in shown
            assert action.help, f"{name} {action.option_strings[-1]} has no help"


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in verbs())], ids=" ".join)
def test_help_imports_no_heavy_package(words: list[str]) -> None:
    code = "import sys\nfrom captioner.cli import main\ntry:\n main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "import json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60)
    imported = json.loads(done.stdout.splitlines()[-1])
    assert "captioner.cli.caption" in imported
    assert [name for name in HEAVY if name in imported] == []
