"""Start, watch, restart and stop the embedded tritonserver."""
