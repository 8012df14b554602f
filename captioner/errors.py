"""Every refusal and fault Captioner can answer with, each with the stable code that stands in front of its sentence.

The code is the class's own name on the wire (`IMAGE_TOO_LARGE: 31 MiB; the limit is 20 MiB`), so one table serves the
server, which writes it, and the clients, which read it back into the same class with `from_wire`.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

Status = Literal["INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"]


class CaptionerError(Exception):
    """Anything that keeps an image from its caption. `code` is stable, the sentence is for people."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[Status] = "INTERNAL"  # the name of Triton's own error code
    by_code: ClassVar[dict[str, type[CaptionerError]]] = {}

    def __init_subclass__(cls) -> None:
        if CaptionerError.by_code.setdefault(cls.code, cls) is not cls:
            raise TypeError(f"{cls.__name__} and {CaptionerError.by_code[cls.code].__name__} share the code {cls.code}")

    def wire(self) -> str:
        """The text that travels: `CODE: sentence`."""
        return f"{self.code}: {self}"


class ImageRefused(CaptionerError):
    """The image cannot be captioned; another one can."""

    code = "IMAGE_REFUSED"
    status = "INVALID_ARG"


class ImageMissing(ImageRefused):
    code = "IMAGE_MISSING"


class ImageTooLarge(ImageRefused):
    """Too many bytes, or too many pixels on a side or in all."""

    code = "IMAGE_TOO_LARGE"


class ImageTooSmall(ImageRefused):
    code = "IMAGE_TOO_SMALL"


class ImageFormatUnknown(ImageRefused):
    """The bytes begin like none of the formats that are read."""

    code = "IMAGE_FORMAT_UNKNOWN"


class ImageBroken(ImageRefused):
    """The bytes begin like a known format and cannot be decoded to the end."""

    code = "IMAGE_BROKEN"


class ParameterRefused(CaptionerError):
    """A request parameter or prompt is refused; nothing is clamped or ignored."""

    code = "PARAMETER_REFUSED"
    status = "INVALID_ARG"


class ParameterUnknown(ParameterRefused):
    code = "PARAMETER_UNKNOWN"


class ParameterInvalid(ParameterRefused):
    """Wrong type or outside the allowed range."""

    code = "PARAMETER_INVALID"


class ParameterUnsupported(ParameterRefused):
    """A known parameter or value that the model being served was not made for."""

    code = "PARAMETER_UNSUPPORTED"


class PromptTooLong(ParameterRefused):
    code = "PROMPT_TOO_LONG"


class OutputRefused(ParameterRefused):
    """A caption cannot be put where it was asked for."""

    code = "OUTPUT_REFUSED"


class ServerBusy(CaptionerError):
    """Running and waiting places are taken; the sentence says when to retry."""

    code = "SERVER_BUSY"
    status = "UNAVAILABLE"


class DeadlineExceeded(CaptionerError):
    """The request's deadline passed before it had a first token."""

    code = "DEADLINE_EXCEEDED"
    status = "UNAVAILABLE"


class ServerStopping(CaptionerError):
    code = "SERVER_STOPPING"
    status = "UNAVAILABLE"


class ServerUnreachable(CaptionerError):
    """Client side: no server answers at the address, or the connection broke."""

    code = "SERVER_UNREACHABLE"
    status = "UNAVAILABLE"


class StreamStalled(CaptionerError):
    """Client side: the server accepted the request and then said nothing for the stall timeout."""

    code = "STREAM_STALLED"
    status = "UNAVAILABLE"


class AccessDenied(CaptionerError):
    """A door in front of the server, or the Hub, wants a key, or another one."""

    code = "ACCESS_DENIED"
    status = "INVALID_ARG"


class CaptionsDiffer(CaptionerError):
    """Client side: a stream broke, and the replica asked in its place writes another caption."""

    code = "CAPTIONS_DIFFER"
    status = "UNAVAILABLE"


class RequestCancelled(CaptionerError):
    code = "CANCELLED"
    status = "CANCELLED"


class ArtefactBroken(CaptionerError):
    """A published file is missing, altered or not what the manifest says."""

    code = "ARTEFACT_BROKEN"


class RepositoryBusy(CaptionerError):
    """Another process is publishing into the same model repository."""

    code = "REPOSITORY_BUSY"


class ModelUnsupported(CaptionerError):
    """The model's type, dtype or shape is none that can be exported or served."""

    code = "MODEL_UNSUPPORTED"


class ModelMissing(ModelUnsupported):
    """No folder and no model of the Hub has the name, or the model has no such revision."""

    code = "MODEL_MISSING"


class HubUnreachable(CaptionerError):
    """The Hugging Face Hub does not answer, or must not be asked, and the cache does not hold what is needed."""

    code = "HUB_UNREACHABLE"
    status = "UNAVAILABLE"


class CacheUnwritable(CaptionerError):
    """The Hub's cache cannot take a model: the disk is full or may not be written."""

    code = "CACHE_UNWRITABLE"


class StartupRefused(CaptionerError):
    """The server cannot start on this machine; the sentence says what to do."""

    code = "STARTUP_REFUSED"


CaptionerError.by_code[CaptionerError.code] = CaptionerError

# Triton's own words, which have no code, while it loads a model or ends.
_COMING_OR_GOING = re.compile(
    "Server is stopping|Server not ready|unknown model|is not ready|is not healthy|Stub process"
)
_CODE = re.compile(r"\b([A-Z]+(?:_[A-Z]+)*): ")


def typed(error: BaseException) -> CaptionerError:
    """`error` itself if it is one of ours, otherwise an INTERNAL one that names it."""
    return error if isinstance(error, CaptionerError) else CaptionerError(f"{type(error).__name__}: {error}")


def from_wire(message: str) -> CaptionerError:
    """The error that `message` names; Triton may have put words of its own in front of the code."""
    for match in _CODE.finditer(message):
        error = CaptionerError.by_code.get(match[1])
        if error is not None:
            return error(message[match.end() :].strip())
    return (ServerStopping if _COMING_OR_GOING.search(message) else CaptionerError)(message.strip())
