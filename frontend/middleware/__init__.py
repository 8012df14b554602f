"""ASGI middlewares: authentication, limits, metrics."""
