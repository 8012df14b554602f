"""Every error that Captioner answers with, each with a stable code.

On the wire the code stands in front of the message: `IMAGE_TOO_LARGE: 31 MiB; the limit is 20 MiB`. The server writes
it with `CaptionerError.wire`, and the clients turn it back into the same class with `from_wire`.
"""

from __future__ import annotations

import re
import traceback
from typing import ClassVar, Literal

Status = Literal["INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"]


class CaptionerError(Exception):
    """The base class of all errors. `code` is stable; the message is for people and may change."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[Status] = "INTERNAL"  # the name of Triton's error code
    by_code: ClassVar[dict[str, type[CaptionerError]]] = {}

    def __init_subclass__(cls) -> None:
        if CaptionerError.by_code.setdefault(cls.code, cls) is not cls:
            raise TypeError(f"{cls.__name__} and {CaptionerError.by_code[cls.code].__name__} share the code {cls.code}")

    def wire(self) -> str:
        """Return the text that is sent: `CODE: message`."""
        return f"{self.code}: {self}"


class ImageRefused(CaptionerError):
    """This image cannot be captioned; other images can."""

    code = "IMAGE_REFUSED"
    status = "INVALID_ARG"


class ImageMissing(ImageRefused):
    code = "IMAGE_MISSING"


class ImageTooLarge(ImageRefused):
    """Too many bytes, or too many pixels along a side or in total."""

    code = "IMAGE_TOO_LARGE"


class ImageTooSmall(ImageRefused):
    code = "IMAGE_TOO_SMALL"


class ImageFormatUnknown(ImageRefused):
    """The first bytes match none of the supported formats."""

    code = "IMAGE_FORMAT_UNKNOWN"


class ImageBroken(ImageRefused):
    """The first bytes match a supported format, but the file cannot be decoded completely."""

    code = "IMAGE_BROKEN"


class ImageTooSlow(ImageRefused):
    """Decoding the file takes longer than the time limit."""

    code = "IMAGE_TOO_SLOW"


class ParameterRefused(CaptionerError):
    """A request parameter or prompt is invalid. Values are never clamped or ignored."""

    code = "PARAMETER_REFUSED"
    status = "INVALID_ARG"


class ParameterUnknown(ParameterRefused):
    code = "PARAMETER_UNKNOWN"


class ParameterInvalid(ParameterRefused):
    """A value of the wrong type or outside the allowed range."""

    code = "PARAMETER_INVALID"


class ParameterUnsupported(ParameterRefused):
    """A known parameter or value that the served model does not support."""

    code = "PARAMETER_UNSUPPORTED"


class PromptTooLong(ParameterRefused):
    code = "PROMPT_TOO_LONG"


class OutputRefused(ParameterRefused):
    """A caption cannot be written to the requested output."""

    code = "OUTPUT_REFUSED"


class ServerBusy(CaptionerError):
    """All slots are in use and the queue is full; the message says when to retry."""

    code = "SERVER_BUSY"
    status = "UNAVAILABLE"


class DeadlineExceeded(CaptionerError):
    """The request's deadline passed before its first token."""

    code = "DEADLINE_EXCEEDED"
    status = "UNAVAILABLE"


class ServerStopping(CaptionerError):
    code = "SERVER_STOPPING"
    status = "UNAVAILABLE"


class ServerUnreachable(CaptionerError):
    """Raised by the client: no server answers at the address, or the connection broke."""

    code = "SERVER_UNREACHABLE"
    status = "UNAVAILABLE"


class StreamStalled(CaptionerError):
    """Raised by the client: the server accepted the request, then sent nothing for the stall timeout."""

    code = "STREAM_STALLED"
    status = "UNAVAILABLE"


class EncoderStalled(CaptionerError):
    """The image encoder gave no answer in time; its process may have died."""

    code = "ENCODER_STALLED"
    status = "UNAVAILABLE"


class AccessDenied(CaptionerError):
    """The API key or token is missing or wrong, at the server, a proxy in front of it, or the Hub."""

    code = "ACCESS_DENIED"
    status = "INVALID_ARG"


class CaptionsDiffer(CaptionerError):
    """Raised by the client: a stream broke, and the next replica generates another caption."""

    code = "CAPTIONS_DIFFER"
    status = "UNAVAILABLE"


class RequestCancelled(CaptionerError):
    code = "CANCELLED"
    status = "CANCELLED"


class ArtefactBroken(CaptionerError):
    """A published file is missing or differs from the manifest."""

    code = "ARTEFACT_BROKEN"


class RepositoryBusy(CaptionerError):
    """Another process is publishing into the same model repository."""

    code = "REPOSITORY_BUSY"


class ModelUnsupported(CaptionerError):
    """The model's type, dtype or shape cannot be exported or served."""

    code = "MODEL_UNSUPPORTED"


class ModelMissing(ModelUnsupported):
    """No folder and no Hub model has this name, or the model does not have this revision."""

    code = "MODEL_MISSING"


class HubUnreachable(CaptionerError):
    """The Hugging Face Hub does not answer or may not be asked, and the cache lacks a needed file."""

    code = "HUB_UNREACHABLE"
    status = "UNAVAILABLE"


class CacheUnwritable(CaptionerError):
    """The Hub's cache cannot store a model: the disk is full or not writable."""

    code = "CACHE_UNWRITABLE"


class StartupRefused(CaptionerError):
    """The server cannot start on this machine; the message says what to do."""

    code = "STARTUP_REFUSED"


CaptionerError.by_code[CaptionerError.code] = CaptionerError

# Triton's own messages while it loads a model or shuts down; they have no code.
_NOT_READY = re.compile("Server is stopping|Server not ready|unknown model|is not ready|is not healthy|Stub process")
_QUEUE_FULL = "Exceeds maximum queue size"  # of `max_queue_size` in a config.pbtxt
_CODE = re.compile(r"\b([A-Z]+(?:_[A-Z]+)*): ")


def typed(error: BaseException) -> CaptionerError:
    """Return `error` if it is a CaptionerError, otherwise an INTERNAL error that names its type and message."""
    return error if isinstance(error, CaptionerError) else CaptionerError(f"{type(error).__name__}: {error}")


def traced(error: BaseException) -> str:
    """Return the type of an error and where it was raised, for a log.

    The message is left out, because it may quote a prompt or an image. The client gets the message.
    """
    frames = traceback.format_tb(error.__traceback__)
    return "".join([f"{type(error).__name__}\n", *frames]).rstrip()


def from_wire(message: str) -> CaptionerError:
    """Return the error that `message` contains. Triton may put text of its own in front of the code."""
    for match in _CODE.finditer(message):
        error = CaptionerError.by_code.get(match[1])
        if error is not None:
            return error(message[match.end() :].strip())
    if _QUEUE_FULL in message:
        return ServerBusy("too many requests wait for this model; retry later")
    return (ServerStopping if _NOT_READY.search(message) else CaptionerError)(message.strip())
