"""`captioner completion`: a real bash completes with the script."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from captioner import wire
from captioner.cli import VERBS, main
from captioner.cli.completion import SHELLS

BASH = shutil.which("bash") or "/bin/bash"
# What bash does at a TAB: set the words so far, call the function that `complete` has bound, print its answers.
TRY = """
source "$1"; shift
function_name=$(complete -p captioner | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$function_name" captioner "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "captioner.bash"
    path.write_text(script("bash", capsys))
    return path


def completed(bash: Path, *words: str) -> list[str]:
    command = [BASH, "--norc", "-c", TRY, "try", str(bash), "captioner", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bash.parent, timeout=20, check=True)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def test_bash_accepts_the_script(bash: Path) -> None:
    done = subprocess.run([BASH, "-n", str(bash)], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_verbs_options_and_choices(bash: Path) -> None:
    assert len(completed(bash, "")) == len(VERBS)
    assert completed(bash, "pr") == ["probe"]
    assert completed(bash, "caption", "--ser") == ["--server"]
    assert completed(bash, "completion", "") == list(SHELLS)


def test_bash_completes_file_names_for_path_arguments(bash: Path) -> None:
    for name in ("photo one.jpg", "photo two.jpg", "other.txt"):
        (bash.parent / name).touch()
    assert sorted(completed(bash, "caption", "pho")) == ["photo one.jpg", "photo two.jpg"]
    assert completed(bash, "bench", "oth") == ["other.txt"]
    assert completed(bash, "up", "--repository", "oth") == ["other.txt"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_every_shell_knows_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert "captioner" in text
    for verb in VERBS:
        assert verb.__name__.rpartition(".")[2] in text


def test_the_zsh_script_describes_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert wire.PARAMETERS["top_p"].doc in script("zsh", capsys)


def test_an_unknown_shell_is_refused_with_the_list_of_shells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "cmd.exe"])
    err = capsys.readouterr().err
    assert all(shell in err for shell in SHELLS)
