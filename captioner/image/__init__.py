"""Image files to pixels: recognise, decode, resize."""
