"""The web page and the HTTP API. They use `captioner.client` and never a model."""

import captioner  # noqa: F401 - before any library: it turns their usage reports off
