"""The web page and the HTTP API. They use `captioner.client` and never a model."""
