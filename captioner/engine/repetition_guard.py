"""Whether a caption has begun to say one phrase again and again.

Knows token ids only: not what they say, nor what to do about it. In 56,307 captions by people the longest such run is
6 tokens for phrases of one to three tokens ("Ok Ok Ok ,"), and under three times the phrase for longer ones.
"""

from __future__ import annotations

LONGEST_PHRASE = 24  # tokens
TIMES = 3
FEWEST_TOKENS = 8  # "very very very" is no loop


def loops(token_ids: list[int]) -> bool:
    """Whether the ids end in one phrase, said at least three times and over at least eight tokens.

    Cheap enough for each token: a phrase length costs one comparison, more only where the last token agrees.
    """
    for phrase in range(1, LONGEST_PHRASE + 1):
        run = max(FEWEST_TOKENS, TIMES * phrase)
        if run > len(token_ids):
            return False
        if token_ids[-1] == token_ids[-1 - phrase] and token_ids[phrase - run :] == token_ids[-run:-phrase]:
            return True
    return False
