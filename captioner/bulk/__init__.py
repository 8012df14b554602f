"""Bulk captioning: a resumable job from folders and archives of images to captions on disk."""
