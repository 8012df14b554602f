"""Where captions are written: tables, sidecars and image metadata."""
