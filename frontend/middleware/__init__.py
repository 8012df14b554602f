"""ASGI middlewares: authentication, request limits, metrics."""
