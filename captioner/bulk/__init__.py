"""Folders and archives of images to captions on disk: a job that survives what happens to it."""
