"""The Hub's refusals, faults and interruptions."""

from __future__ import annotations

import hashlib
import socket
import threading
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from captioner.errors import AccessDenied, ArtefactBroken, HubUnreachable, ModelMissing
from captioner.hub import api
from captioner.hub import resolve as names
from captioner.hub.pull import SINGLE, pull
from tests.support.hub_files import CONFIG, MODEL, repository, weights
from tests.support.hub_http import Fault
from tests.support.hub_server import Hub


@pytest.mark.parametrize("token", [None, "wrong"])
def test_the_error_for_a_gated_model_says_to_accept_its_terms(
    hub: Hub, commit: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close_to(MODEL, "gated", "hf_right")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessDenied, match=f"accept its terms at {hub.address}/{MODEL}, then run `hf auth login`"):
        pull(MODEL)


@pytest.mark.parametrize("how", ["gated", "private"])
@pytest.mark.parametrize("place", ["HF_TOKEN", "hf auth login"])
def test_the_standard_token_gives_access_and_is_not_sent_to_the_cdn(
    hub: Hub, commit: str, how: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close_to(MODEL, "gated" if how == "gated" else "private", "hf_right")
    if place == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", "hf_right")
    else:
        hub.home.mkdir(parents=True, exist_ok=True)
        (hub.home / "token").write_text("hf_right")
    assert pull(MODEL).faults() == {}
    assert {asked.token for asked in hub.asked if asked.on_cdn} == {None}
    assert {asked.token for asked in hub.asked if "/resolve/" in asked.path} == {"hf_right"}


@pytest.mark.parametrize(
    ("model", "revision", "sentence"),
    [
        ("tiny/nothing", "main", "there is no model 'tiny/nothing' at http.*private.*hf auth login"),
        (MODEL, "nothing", f"{MODEL} has no branch, tag or commit 'nothing' at http"),
        (MODEL, "0" * 40, "has no branch, tag or commit '0000"),
    ],
)
@pytest.mark.parametrize("ask", [pull, names.find, names.latest_commit])
def test_a_missing_model_and_a_missing_revision_have_different_errors(
    hub: Hub, commit: str, ask: object, model: str, revision: str, sentence: str
) -> None:
    with pytest.raises(ModelMissing, match=sentence):
        ask(model, revision)  # type: ignore[operator]


@pytest.mark.parametrize("where", ["revision/main", CONFIG, SINGLE])
@pytest.mark.parametrize("fault", [429, 500, 503, "cut", "reset"])
def test_requests_are_repeated_when_the_hub_is_overloaded_or_closes_the_connection(
    hub: Hub, commit: str, fault: Fault, where: str
) -> None:
    hub.fault(where, fault, times=2)
    assert pull(MODEL).faults() == {}


@pytest.mark.parametrize("where", ["revision/main", SINGLE])
def test_a_hub_that_stays_overloaded_is_an_error_after_the_retries(hub: Hub, commit: str, where: str) -> None:
    hub.fault(where, 503, times=99)
    with pytest.raises(HubUnreachable, match=f"{hub.address} answers 503 for (model.safetensors of )?{MODEL}"):
        pull(MODEL)
    assert len([asked for asked in hub.asked if asked.status == 503]) == len(api.RETRY_WAITS_S) + 1


def test_a_long_retry_after_fails_at_once(hub: Hub, commit: str) -> None:
    hub.fault("revision/main", 429, times=99, retry_after_s=3600)
    with pytest.raises(HubUnreachable, match=r"429 .* asks to retry after 3600 s"):
        pull(MODEL)
    assert len([asked for asked in hub.asked if asked.path.endswith("main")]) == 1


def test_a_retry_after_is_waited_for(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("captioner.hub.api.time.sleep", waited.append)
    hub.fault("revision/main", 429, retry_after_s=17)
    pull(MODEL)
    assert waited == [17]


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_cut_download_is_resumed(hub: Hub, tiny_files: dict[str, bytes], fault: Fault) -> None:
    size = 2_000_000
    hub.commit(MODEL, tiny_files | {SINGLE: weights(size)})
    hub.fault(SINGLE, fault, at=1_500_000)
    pull(MODEL)
    first, second = hub.bodies(SINGLE)
    assert first.range is None
    assert second.range is not None and 0 < int(second.range.strip("bytes=-")) <= 1_500_000
    assert hub.sent(SINGLE) < 2 * size


def test_the_next_pull_resumes_a_failed_download(hub: Hub, tiny_files: dict[str, bytes]) -> None:
    size = 2_000_000
    hub.commit(MODEL, tiny_files | {SINGLE: weights(size)})
    hub.fault(SINGLE, "cut", at=1_500_000)
    hub.fault(SINGLE, 503, times=4)
    with pytest.raises(HubUnreachable, match="503"):
        pull(MODEL)
    log: list[str] = []
    pull(MODEL, log=log.append)
    assert hub.bodies(SINGLE)[-1].range is not None
    assert hub.sent(SINGLE) < 1.3 * size
    assert any(f"{SINGLE}, 2.0 MB, resumed at 1." in line for line in log)
    assert not (repository() / "captioner" / "parts").exists()


def test_a_damaged_partial_file_is_detected_deleted_and_downloaded_again(
    hub: Hub, commit: str, tiny_files: dict[str, bytes]
) -> None:
    part = repository() / "captioner" / "parts" / hashlib.sha256(tiny_files[SINGLE]).hexdigest()
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 1000)
    with pytest.raises(ArtefactBroken, match=SINGLE):
        pull(MODEL)
    part.write_bytes(b"\0" * (len(tiny_files[SINGLE]) + 1))
    assert pull(MODEL).faults() == {}


@pytest.mark.parametrize("where", ["revision/main", SINGLE])
def test_a_hub_that_sends_nothing_is_an_error_after_a_timeout(
    hub: Hub, commit: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fault(where, "silent", times=99)
    with pytest.raises(HubUnreachable, match=r"no data for 0\.2 s, which HF_HUB_DOWNLOAD_TIMEOUT sets"):
        pull(MODEL)


def test_a_slow_download_does_not_time_out(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)  # the file takes 0.8 s
    hub.fault(SINGLE, "slow")
    assert pull(MODEL).faults() == {}
    assert len(hub.bodies(SINGLE)) == 1


@pytest.mark.parametrize("sha", ["../../../etc", None, "A" * 40])
def test_an_invalid_commit_is_refused(hub: Hub, commit: str, sha: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_model_info", lambda *_, **__: SimpleNamespace(sha=sha, siblings=()))
    for ask in (pull, names.latest_commit):
        with pytest.raises(HubUnreachable, match=f"gives {sha!r} as a commit"):
            ask(MODEL, "main")


def test_an_html_page_in_place_of_json_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<h1>Hello</h1")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(HubUnreachable, match=MODEL):
            names.latest_commit(MODEL, "main")


def test_the_latest_commit_of_a_branch_takes_one_small_request(
    hub: Hub, commit: str, tiny_files: dict[str, bytes]
) -> None:
    assert names.latest_commit(MODEL, "main") == commit
    new = hub.commit(MODEL, tiny_files | {"README.md": b"new"})
    hub.asked.clear()
    assert names.latest_commit(MODEL, "main") == new
    hub.move(MODEL, "main", commit)
    assert names.latest_commit(MODEL, "main") == commit
    assert [asked.path for asked in hub.asked] == [f"/api/models/{MODEL}/revision/main"] * 2
    assert all(asked.sent < 200 for asked in hub.asked)
