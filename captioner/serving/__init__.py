"""What runs inside Triton's models: requests in, captions out."""
