"""Azure's Image Analysis 4.0: `imageanalysis:analyze` with the features that the served model has a style for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from captioner.errors import (
    CaptionerError,
    ImageFormatUnknown,
    ImageMissing,
    ImageTooLarge,
    ImageTooSmall,
    ParameterInvalid,
    ParameterUnknown,
    ParameterUnsupported,
)
from captioner.wire import Caption, Details, ModelCard, Region
from frontend.api.backend import Backend
from frontend.api.openapi import file_body, responses
from frontend.api.request_body import is_file, read_file, read_json
from frontend.api.request_values import check_names
from frontend.client_identity import client_parameters
from frontend.http_errors import status_of

CAPTION, DENSE_CAPTIONS, OBJECTS, TAGS = "caption", "denseCaptions", "objects", "tags"
ENGLISH = "en"  # what every model writes unasked
FEATURES = (CAPTION, DENSE_CAPTIONS, OBJECTS, "people", "read", "smartCrops", TAGS)
STYLES = {DENSE_CAPTIONS: "regions", OBJECTS: "objects", TAGS: "tags"}  # a caption is in the model's default style
QUERY = ("api-version", "features", "language", "gender-neutral-caption", "model-version", "smartcrops-aspect-ratios")
VERSIONS = ("2023-10-01", "2024-02-01")
STATUS_CODES = {401: "401", 429: "429"}  # that Azure repeats as the code; all other refusals are InvalidRequest
INNER_CODES = {  # Azure's, where it has one for our error
    ImageFormatUnknown.code: "InvalidImageFormat",
    ImageTooLarge.code: "InvalidImageSize",
    ImageTooSmall.code: "InvalidImageSize",
    ParameterUnsupported.code: "NotSupportedFeature",
}


def azure_error(error: CaptionerError) -> dict[str, Any]:
    """Return the body of an error."""
    status = status_of(error)
    code = STATUS_CODES.get(status, "InternalServerError" if status >= 500 else "InvalidRequest")
    inner = {"code": INNER_CODES.get(error.code, error.code), "message": str(error)}
    return {"error": {"code": code, "message": str(error), "innererror": inner}}


def add_azure(router: APIRouter, backend: Backend) -> None:
    """Add the endpoint to the API's router."""
    schema = {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}
    parameters = [
        {"name": name, "in": "query", "required": name == "features", "schema": {"type": "string"}} for name in QUERY
    ]

    @router.post(
        "/computervision/imageanalysis:analyze",
        name="azure",
        openapi_extra=file_body(("application/json", {"schema": schema})) | {"parameters": parameters},
        responses=responses("The analysis", "application/json"),
    )
    async def analyze(request: Request) -> JSONResponse:
        """Analyze an image: its caption and its tags, and what is where."""
        query, card = _query(request), await backend.cards.get()
        features, parameters = _features(query, card), _language(query, card)
        image = await read_file(request) if is_file(request) else await _fetch(request, backend)
        captions = {feature: await _ask(backend, image, feature, parameters) for feature in features}
        details = captions[features[0]].details
        answer: dict[str, Any] = {
            "modelVersion": details.revision,
            "metadata": {"width": details.image.width, "height": details.image.height},
        }
        if CAPTION in captions:
            answer["captionResult"] = {
                "text": captions[CAPTION].text,
                "confidence": _confidence(captions[CAPTION].details),
            }
        if TAGS in captions:
            names = dict.fromkeys(tag.strip() for tag in captions[TAGS].text.split(","))
            tags = [{"name": name, "confidence": _confidence(captions[TAGS].details)} for name in names if name]
            answer["tagsResult"] = {"values": tags}
        if DENSE_CAPTIONS in captions:
            confidence = _confidence(captions[DENSE_CAPTIONS].details)
            answer["denseCaptionsResult"] = {
                "values": [
                    {"text": label, "confidence": confidence, "boundingBox": box}
                    for label, box in _boxes(captions[DENSE_CAPTIONS].details.regions)
                ]
            }
        if OBJECTS in captions:
            confidence = _confidence(captions[OBJECTS].details)
            answer["objectsResult"] = {
                "values": [
                    {"boundingBox": box, "tags": [{"name": label, "confidence": confidence}]}
                    for label, box in _boxes(captions[OBJECTS].details.regions)
                ]
            }
        return JSONResponse(answer)


def _language(query: Mapping[str, str], card: ModelCard) -> dict[str, str]:
    """Return the wire's parameter for a language other than English. Raises ParameterUnsupported."""
    language = query.get("language", "")
    if language.lower() in ("", ENGLISH):
        return {}
    if not card.takes_language:
        raise ParameterUnsupported(f"language is {language[:80]!r}; the served model supports {ENGLISH}")
    return {"language": language}


async def _ask(backend: Backend, image: bytes, feature: str, parameters: dict[str, str]) -> Caption:
    style = {"style": STYLES[feature]} if feature in STYLES else {}
    return await backend.client.caption(image, **style, **parameters, **client_parameters())


def _confidence(details: Details) -> float:
    """Return the calibrated confidence; 0 if the model has no calibration, because Azure's clients need a number."""
    return 0.0 if details.confidence is None else details.confidence


def _boxes(regions: tuple[Region, ...] | None) -> list[tuple[str, dict[str, int]]]:
    """Return each label with its box in Azure's form."""
    boxes = [(region.label, region.box) for region in regions or () if region.box is not None]
    return [(label, {"x": x, "y": y, "w": right - x, "h": bottom - y}) for label, (x, y, right, bottom) in boxes]


async def _fetch(request: Request, backend: Backend) -> bytes:
    """Return the image at the URL in a JSON body."""
    body = await read_json(request, query=True)
    check_names(body, ("url",), {})
    url = body.get("url")
    if not isinstance(url, str) or not url.lower().startswith(("http://", "https://")):
        raise ImageMissing("url is missing; it must be an http(s) URL")
    return await backend.images.read(url)


def _query(request: Request) -> dict[str, str]:
    """Return the query string's values by their names in lower case. Raises a subclass of ParameterRefused."""
    query = {name.lower(): value.strip() for name, value in request.query_params.multi_items()}
    for name in query:
        if name not in QUERY:
            raise ParameterUnknown(f"{name[:80]!r} is not a parameter; the parameters are {', '.join(QUERY)}")
    for name, accepted in (("gender-neutral-caption", ("false",)), ("api-version", VERSIONS)):
        value = query.get(name, "")
        if value and value.lower() not in accepted:
            raise ParameterUnsupported(f"{name} is {value[:80]!r}; this server supports {', '.join(accepted)}")
    return query


def _features(query: Mapping[str, str], card: ModelCard) -> list[str]:
    """Return the features that a query asks for. Raises a subclass of ParameterRefused."""
    supported = [CAPTION, *(feature for feature, style in STYLES.items() if style in card.styles)]
    known = {feature.lower(): feature for feature in FEATURES}
    names = [name.strip().lower() for name in query.get("features", "").split(",") if name.strip()]
    if not names:
        raise ParameterInvalid(f"features is missing; this model supports {', '.join(supported)}")
    for name in names:
        if name not in known:
            raise ParameterInvalid(f"features has {name[:80]!r}; the features are {', '.join(FEATURES)}")
        if known[name] not in supported:
            raise ParameterUnsupported(f"features has {known[name]}; this model supports {', '.join(supported)}")
    return list(dict.fromkeys(known[name] for name in names))
