"""Files, folders, globs and archives to image items."""
