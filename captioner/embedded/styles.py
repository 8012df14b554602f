"""The styles and lengths of the embedded model, and the control token that is the prompt of each.

A new style needs a form that the model was taught (`FORMS`, training/) and an export of the model.
"""

from __future__ import annotations

from captioner.embedded import FORMS, Form

STYLES: dict[str, dict[str, str]] = {  # style → length → prompt
    "descriptive": {length: FORMS[length] for length in ("short", "medium", "long")},
    "alt-text": {length: FORMS[length] for length in ("short", "medium")},
    "plain": {"medium": FORMS["plain"]},
    "tags": {"medium": FORMS["tags"]},
}
DEFAULT_FORM: Form = "short"  # four to five times as many short captions as medium ones are acceptable as they stand
DEFAULT_STYLE, DEFAULT_LENGTH = "descriptive", DEFAULT_FORM
