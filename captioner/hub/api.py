"""What the Hugging Face Hub is asked, by huggingface_hub's own client, and its refusals in our words.

Nothing here knows which files are wanted or where the cache keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, if not marked so

from captioner import __version__
from captioner.errors import AccessDenied, CaptionerError, HubUnreachable, ModelMissing
from captioner.hub.cache import COMMIT, DIGEST, File

WAITS_S = (1.0, 2.0, 4.0)  # before the same is asked again
LONGEST_WAIT_S = 60.0  # that the Hub's Retry-After is heeded
BUSY = (429, 500, 502, 503, 504)
# httpx's names; the package that its classes come from is another in each huggingface_hub.
CUTS = ("ReadError", "RemoteProtocolError")

Answer = TypeVar("Answer")


def latest_commit(model: str, branch: str) -> str:
    """The commit that a branch is now, by one small request."""
    return _commit(_ask(model, branch, expand=["sha"]).sha)


def listing(model: str, revision: str) -> tuple[str, dict[str, File]]:
    """The commit that `revision` is now, and the files at its root by name, by one request for both."""
    answer = _ask(model, revision, files_metadata=True)
    files = {}
    for entry in answer.siblings or ():
        if "/" in entry.rfilename:
            continue  # exports for other runtimes and other models: transformers loads the root
        size, digest = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, entry.blob_id)
        if size is None or digest is None or not DIGEST.fullmatch(digest):
            raise HubUnreachable(f"{constants.ENDPOINT} gives no digest of {model}'s {entry.rfilename} to check it by")
        files[entry.rfilename] = File(size, digest)
    return _commit(answer.sha), files


def fetch(model: str, commit: str, name: str, size: int, part: Path) -> None:
    """Downloads a file of `size` bytes into `part`, going on behind what is there; what has come stays there.

    By the client's own inner loop and plain HTTP, for what lies in Xet too: snapshot_download (2.4) throws a part away
    when it fails, and begins the file anew in the next process.
    """
    headers = build_hf_headers(library_name="captioner", library_version=__version__)
    headers["Accept-Encoding"] = "identity"  # so that a place in the answer is the same place in the file

    def get() -> None:
        with part.open("ab") as out:
            http_get(
                hf_hub_url(model, name, revision=commit),
                out,
                resume_size=out.tell(),
                headers=headers,
                expected_size=size,
                displayed_filename=name,
            )

    with _in_words(model, commit, f"{name} of {model}", "; what has come of it stays, the same command goes on there"):
        _patiently(get)


def _ask(model: str, revision: str, **what: Any) -> ModelInfo:
    api, timeout_s = HfApi(library_name="captioner", library_version=__version__), constants.HF_HUB_DOWNLOAD_TIMEOUT
    with _in_words(model, revision):  # huggingface_hub retries its other requests, but not this one
        return _patiently(lambda: api.model_info(model, revision=revision, timeout=timeout_s, **what))


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns, asked again where the Hub is busy or has cut the connection."""
    for wait_s in (*WAITS_S, None):
        try:
            return ask()
        except Exception as error:
            if not _passes(error) or wait_s is None or (told_s := _told_to_wait(error)) > LONGEST_WAIT_S:
                raise
            time.sleep(max(wait_s, told_s))
    raise AssertionError("the last turn returns or raises")


def _passes(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY
    return type(error).__name__ in CUTS


def _told_to_wait(error: Exception) -> float:
    header = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(header) if header.isdecimal() else 0


def _commit(sha: str | None) -> str:
    if sha is None or not COMMIT.fullmatch(sha):  # it becomes the name of a folder
        raise HubUnreachable(f"{constants.ENDPOINT} gives {sha!r} for a commit: it is no Hub")
    return sha


@contextmanager
def _in_words(model: str, revision: str, what: str = "", hint: str = "") -> Iterator[None]:
    """Turns whatever the client raises into one of ours; what this disk raises is left to who chose the place."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _refusal(error, model, revision) or HubUnreachable(_silence(error, what or model) + hint) from error


def _refusal(error: Exception, model: str, revision: str) -> CaptionerError | None:
    """The Hub has answered, and trying again helps nobody."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return AccessDenied(
            f"{model} is gated: accept its terms at {hub}/{model}, then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelMissing(f"{model} has no branch, tag or commit {revision!r} at {hub}")
    if isinstance(error, RepositoryNotFoundError):
        return ModelMissing(
            f"there is no model {model!r} at {hub}, or it is private: then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        status = error.response.status_code
        return AccessDenied(f"{hub} refuses {model} with {status}: `hf auth whoami` shows whose token was sent")
    return None


def _silence(error: Exception, what: str) -> str:
    """Why nothing, or nothing of use, was answered."""
    hub = constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked"
    if isinstance(error, HfHubHTTPError):
        wait = f" and asks for {_told_to_wait(error):g} s of patience" if _told_to_wait(error) else ""
        return f"{hub} answers {error.response.status_code} for {what}{wait}"
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if "timed out" in reason or "Timeout" in type(error).__name__:
        reason = f"nothing came for {constants.HF_HUB_DOWNLOAD_TIMEOUT} s, which HF_HUB_DOWNLOAD_TIMEOUT sets"
    return f"{hub} cannot be reached for {what}: {reason}"
