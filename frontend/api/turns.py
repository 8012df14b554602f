"""A conversation of any API as one question: which image is captioned, and which texts are the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from captioner.errors import ImageMissing, ParameterInvalid
from captioner.wire import ModelCard
from frontend.http_errors import BodyTooLarge
from frontend.middleware.limits import MAX_TEXT_BYTES

PROMPT_CHOICES = ("style", "length", "extras", "name")  # they select a prompt, so they exclude a text
SYSTEM_ROLES = ("system", "developer")


@dataclass
class Turn:
    """The content of one message."""

    role: str
    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """What a conversation asks."""

    image: str  # base64, a data URL or an http(s) URL
    prompt: str | None
    system: str | None  # the text of the system turn
    unused_text: str  # text of the conversation that this model ignores


def question(turns: Sequence[Turn], card: ModelCard, parameters: Mapping[str, object]) -> Question:
    """Return the question that `turns` ask the model of `card`.

    The newest image of a user is captioned. The user's texts from that message on are the prompt of a model that
    follows instructions; the system's texts are its system turn, or come before the prompt if it has none. All other
    texts are unused. Raises ImageMissing, ParameterInvalid for several images or a text beside one of PROMPT_CHOICES,
    or BodyTooLarge.
    """
    image, systems, texts, unused = _read(turns)
    characters = sum(map(len, (*systems, *texts, *unused)))
    if characters > MAX_TEXT_BYTES:
        raise BodyTooLarge(f"the conversation has {characters} characters of text; the limit is {MAX_TEXT_BYTES}")
    if not card.takes_system:
        systems, texts = [], [*systems, *texts]
    prompt = "\n\n".join(texts) or None
    if prompt is not None and not card.follows_instructions:
        unused, prompt = [*texts, *unused], None
    chosen = [name for name in PROMPT_CHOICES if name in parameters]
    if prompt is not None and chosen:
        raise ParameterInvalid(f"{chosen[0]} is given together with a text; both set the prompt, so send only one")
    return Question(image, prompt, "\n\n".join(systems) or None, "\n\n".join(unused))


def _read(turns: Sequence[Turn]) -> tuple[str, list[str], list[str], list[str]]:
    """Return the image, the texts of the system, those of the user from the image on, and all others."""
    last = max((index for index, turn in enumerate(turns) if turn.role == "user" and turn.images), default=-1)
    if last < 0:
        raise ImageMissing("no user message has an image; one must have one")
    if (images := len(turns[last].images)) > 1:
        raise ParameterInvalid(f"messages has {images} images in message {last + 1}; it must be exactly one")
    systems: list[str] = []
    texts: list[str] = []
    unused: list[str] = []
    for index, turn in enumerate(turns):
        instructs = turn.role == "user" and index >= last
        target = systems if turn.role in SYSTEM_ROLES else texts if instructs else unused
        target.extend(text for text in turn.texts if text.strip())
        if index != last:
            unused.extend("[an earlier image]" for _ in turn.images)
    return turns[last].images[0], systems, texts, unused
