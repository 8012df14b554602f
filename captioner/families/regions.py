"""Captions that name places in the image: location tokens become regions, and the text is the labels without them.

Such a model writes a label, then the corners of its place: "car<loc_52><loc_333><loc_932><loc_774>".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from tokenizers import Tokenizer

from captioner.errors import ArtefactBroken
from captioner.wire import Region

BOX, QUADRILATERAL = 4, 8  # location tokens of one region: left, top, right, bottom; or x and y of four corners


class Locations:
    """The location tokens of one tokenizer. Token `name.format(n)` is the n-th of `bins` equal parts of a side.

    It decodes ids in place of the tokenizer. The text has no location tokens, and a comma between labels. Text of more
    ids begins with the text of fewer ids, as far as the tokenizer's does.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, bins: int) -> None:
        """Raise ArtefactBroken if the tokenizer lacks one of the tokens."""
        self._tokenizer = tokenizer
        self._bins = bins
        self._bin_of: dict[int, int] = {}
        for number in range(bins):
            token = tokenizer.token_to_id(name.format(number))
            if token is None:
                raise ArtefactBroken(f"the tokenizer has no token {name.format(number)!r}; export again")
            self._bin_of[token] = number

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the labels, joined by commas."""
        return ", ".join(label for label, _ in self._labelled(ids, skip_special_tokens) if label)

    def id_to_token(self, token: int) -> str | None:
        """See tokenizers.Tokenizer."""
        found: str | None = self._tokenizer.id_to_token(token)
        return found

    def regions(self, ids: Sequence[int], width: int, height: int, per_region: int) -> tuple[Region, ...]:
        """Return the regions of a caption in an image of `width` × `height` px; `per_region` is BOX or QUADRILATERAL.

        A label may have several places. Places without a label, incomplete ones, and boxes whose right or bottom side
        comes before the left or top are left out.
        """
        found: list[Region] = []
        for label, bins in self._labelled(ids):
            # The middle of each part, rounded down, as in transformers' processor.
            pixels = [(2 * each + 1) * (height if i % 2 else width) // (2 * self._bins) for i, each in enumerate(bins)]
            complete = len(bins) // per_region if label else 0
            for place in (pixels[n * per_region : (n + 1) * per_region] for n in range(complete)):
                if per_region == QUADRILATERAL:
                    found.append(Region(label, polygon=tuple(zip(place[::2], place[1::2], strict=True))))
                elif place[0] <= place[2] and place[1] <= place[3]:
                    found.append(Region(label, box=(place[0], place[1], place[2], place[3])))
        return tuple(found)

    def _labelled(self, ids: Sequence[int], skip_special_tokens: bool = True) -> Iterator[tuple[str, list[int]]]:
        """Yield each label with the location tokens that follow it, which the last label may not have yet."""
        label: str | None = None
        for is_location, run in groupby(ids, self._bin_of.__contains__):
            if is_location:
                yield label or "", [self._bin_of[each] for each in run]
                label = None
            else:
                label = self._tokenizer.decode(list(run), skip_special_tokens=skip_special_tokens).strip()
        if label is not None:
            yield label, []
