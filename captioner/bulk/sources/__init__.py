"""From the PATHs of a command to image items: files, folders, globs and archives."""
