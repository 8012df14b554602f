"""Names of models and revisions, and models that are on this disk."""

from __future__ import annotations

import hashlib
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.embedded import EMBEDDED, EMBEDDED_FOLDER
from captioner.errors import ModelMissing, StartupRefused
from captioner.hub import resolve as names
from tests.support.hub_files import MODEL
from tests.support.hub_server import Hub

IDS = st.from_regex(r"([A-Za-z0-9_]{1,9}/)?[A-Za-z0-9][A-Za-z0-9_]{0,9}([.-][A-Za-z0-9_]{1,5}){0,2}", fullmatch=True)
REVISIONS = st.from_regex(r"[A-Za-z0-9_@]([A-Za-z0-9_-]{0,8}/[A-Za-z0-9_]{1,8}){0,2}", fullmatch=True)


@given(IDS.filter(lambda text: not text.endswith(".git")), st.none() | REVISIONS)
def test_a_name_and_a_revision_round_trip(model: str, revision: str | None) -> None:
    if names.local_folder(model):
        return
    assert names.parse(model if revision is None else f"{model}@{revision}") == (model, revision)


@given(st.text() | st.text("a/.@-~ \\\n:", max_size=12))
def test_any_text_is_parsed_or_refused_and_no_revision_is_a_path_outside_the_cache(text: str) -> None:
    try:
        model, revision = names.parse(text)
    except ModelMissing:
        return
    if names.local_folder(text):
        assert (model, revision) == (text, None)
        return
    refs = Path("/cache/refs")
    assert revision is None or refs in Path(refs, revision).resolve().parents
    assert text == model if revision is None else text == f"{model}@{revision}"


@pytest.mark.parametrize(
    "text",
    ["", "@main", "a/b/c", "a b", "tiny--captioner", "tiny/captioner.git", "https://huggingface.co/tiny/a", "a" * 5000]
    + [f"tiny/a@{bad}" for bad in ("", "../../etc", "-f", "a..b", "a b", "main@{1}", "a" * 300, "/a", "a.lock", "é\n")],
)  # fmt: skip
def test_an_error_quotes_an_invalid_name_or_revision(text: str) -> None:
    with pytest.raises(ModelMissing) as error:
        names.parse(text)
    model, _, revision = text.partition("@")
    assert repr(revision if model == "tiny/a" else model) in str(error.value)


def test_a_folders_path_may_contain_an_at_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "team@work" / "model@v2"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert names.parse(str(folder)) == (str(folder), None)
    assert names.find(*names.parse(str(folder))).folder == folder
    monkeypatch.chdir(folder.parent)
    assert names.parse("model@v2") == ("model@v2", None)


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(StartupRefused, match=r"pip install 'captioner\[export\]'"):
        names.parse(MODEL)
    assert names.parse(EMBEDDED) == (EMBEDDED, None)


@pytest.mark.parametrize("model", [EMBEDDED, str(EMBEDDED_FOLDER)])
def test_a_local_model_needs_no_hub_and_has_no_revisions(hub: Hub, model: str) -> None:
    assert names.find(*names.parse(model)).folder.resolve() == EMBEDDED_FOLDER.resolve()
    with pytest.raises(ModelMissing, match="'main'"):
        names.find(*names.parse(f"{model}@main"))
    with pytest.raises(ModelMissing, match="does not have branches"):
        names.latest_commit(model, "main")
    assert hub.asked == []


def test_a_local_models_weights_are_hashed_without_being_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    revision = names.find(str(tmp_path)).revision
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert revision == hashlib.sha1(bytes(200 * 2**20)).hexdigest()
    assert peak < 10 * 2**20
