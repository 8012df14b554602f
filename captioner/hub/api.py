"""Requests to the Hugging Face Hub through huggingface_hub's client, with retries, and its errors as ours.

It knows neither which files a model needs nor where the cache keeps them.
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
    SafetensorsParsingError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not exported

from captioner import __version__
from captioner.errors import AccessDenied, ArtefactBroken, CaptionerError, HubUnreachable, ModelMissing
from captioner.hub.cache import COMMIT, DIGEST, File
from captioner.hub.weights import Tensor

RETRY_WAITS_S = (1.0, 2.0, 4.0)
MAX_RETRY_AFTER_S = 60.0  # a longer Retry-After of the Hub fails the request
RETRY_STATUSES = (429, 500, 502, 503, 504)
# Names of httpx's exceptions; huggingface_hub's versions import the classes from different packages.
DISCONNECTS = ("ReadError", "RemoteProtocolError")

Answer = TypeVar("Answer")


def latest_commit(model: str, branch: str) -> str:
    """Return the commit that a branch points to, by one small request."""
    return _commit(_model_info(model, branch, expand=["sha"]).sha)


def listing(model: str, revision: str) -> tuple[str, dict[str, File]]:
    """Return the commit that `revision` points to and the files at its root by name, by one request."""
    answer = _model_info(model, revision, files_metadata=True)
    files = {}
    for entry in answer.siblings or ():
        if "/" in entry.rfilename:
            continue  # exports for other runtimes, and other models: transformers loads the root only
        size, digest = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, entry.blob_id)
        if size is None or digest is None or not DIGEST.fullmatch(digest):
            raise HubUnreachable(f"{constants.ENDPOINT} gives no digest to verify {model}'s {entry.rfilename}")
        files[entry.rfilename] = File(size, digest)
    return _commit(answer.sha), files


def fetch(model: str, commit: str, name: str, size: int, part: Path) -> None:
    """Download a file of `size` bytes to `part`; resume after the bytes that `part` holds. A failure keeps them.

    This calls the client's inner loop over plain HTTP, also for files in Xet: snapshot_download (2.4) deletes a partial
    file when it fails, and another process starts the file again.
    """
    headers = build_hf_headers(library_name="captioner", library_version=__version__)
    headers["Accept-Encoding"] = "identity"  # so that offsets in the response are offsets in the file

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

    with _typed_errors(model, commit, f"{name} of {model}", "; the partial file is kept, the same command resumes it"):
        _with_retries(get)


def tensors(model: str, commit: str, name: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, from the file's header; their data are not downloaded.

    Raises ArtefactBroken for a header that cannot be read.
    """
    with _typed_errors(model, commit, f"the header of {name} of {model}"):
        try:
            header = _with_retries(lambda: _api().parse_safetensors_file_metadata(model, name, revision=commit))
        except SafetensorsParsingError as error:
            raise ArtefactBroken(f"the header of {name} of {model} cannot be read: {error}") from error
    return {key: Tensor(each.dtype, tuple(each.shape)) for key, each in header.tensors.items()}


def _model_info(model: str, revision: str, **options: Any) -> ModelInfo:
    api, timeout_s = _api(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    with _typed_errors(model, revision):  # huggingface_hub retries its other requests, but not this one
        return _with_retries(lambda: api.model_info(model, revision=revision, timeout=timeout_s, **options))


def _api() -> HfApi:
    return HfApi(library_name="captioner", library_version=__version__)


def _with_retries(request: Callable[[], Answer]) -> Answer:
    """Return what `request` returns; repeat it when the Hub is overloaded or has closed the connection."""
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return request()
        except Exception as error:
            if not _is_transient(error) or wait_s is None or (minimum_s := _retry_after_s(error)) > MAX_RETRY_AFTER_S:
                raise
            time.sleep(max(wait_s, minimum_s))
    raise AssertionError("the last attempt returns or raises")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in RETRY_STATUSES
    return type(error).__name__ in DISCONNECTS


def _retry_after_s(error: Exception) -> float:
    header = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(header) if header.isdecimal() else 0


def _commit(sha: str | None) -> str:
    if sha is None or not COMMIT.fullmatch(sha):  # it becomes the name of a folder
        raise HubUnreachable(f"{constants.ENDPOINT} gives {sha!r} as a commit; it is not a Hugging Face Hub")
    return sha


@contextmanager
def _typed_errors(model: str, revision: str, what: str = "", hint: str = "") -> Iterator[None]:
    """Raise the client's errors as ours. Errors of the local disk pass through: the caller knows its path."""
    try:
        yield
    except CaptionerError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _refusal(error, model, revision) or HubUnreachable(_outage(error, what or model) + hint) from error


def _refusal(error: Exception, model: str, revision: str) -> CaptionerError | None:
    """Return our error for a refusal that a retry cannot change, or None."""
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


def _outage(error: Exception, what: str) -> str:
    """Return the sentence for a Hub that does not answer, or not usefully."""
    hub = constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not contacted"
    if isinstance(error, HfHubHTTPError):
        wait = f" and asks to retry after {_retry_after_s(error):g} s" if _retry_after_s(error) else ""
        return f"{hub} answers {error.response.status_code} for {what}{wait}"
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if "timed out" in reason or "Timeout" in type(error).__name__:
        reason = f"no data for {constants.HF_HUB_DOWNLOAD_TIMEOUT} s, which HF_HUB_DOWNLOAD_TIMEOUT sets"
    return f"{hub} cannot be reached for {what}: {reason}"
