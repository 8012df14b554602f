"""Put captions back into the order of the inputs. It knows numbers, not outputs."""

from __future__ import annotations

from typing import Generic, TypeVar

MAX_HELD = 1024  # captions that wait for one image
T = TypeVar("T")


class InputOrder(Generic[T]):
    """Captions come as they finish, and leave by their number: 0, 1, 2, …

    When more than MAX_HELD captions wait for an image, they leave without it, and its own caption follows later.
    """

    def __init__(self) -> None:
        self._next = 0
        self._held: dict[int, T | None] = {}

    def add(self, number: int, caption: T | None) -> list[T]:
        """Add the caption of an image, or None if it failed; return the captions whose turn it is."""
        if number < self._next:
            return [] if caption is None else [caption]
        self._held[number] = caption
        if len(self._held) > MAX_HELD:
            self._next = min(self._held)
        ready = []
        while self._next in self._held:
            ready.append(self._held.pop(self._next))
            self._next += 1
        return [each for each in ready if each is not None]

    def rest(self) -> list[T]:
        """Return all captions that are still held, in order."""
        held = [self._held[number] for number in sorted(self._held)]
        self._held.clear()
        return [each for each in held if each is not None]
