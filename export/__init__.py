"""From a model to a folder that `captioner publish` can make live."""

import captioner  # noqa: F401 - before any library: it turns their usage reports off
