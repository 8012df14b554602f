"""Captioner: image captioning on your own server. Importing this package loads no dependencies."""

__version__ = "0.1.0"
