"""Captioner: image captioning on your own server.

Importing this package loads no dependencies. It turns off the usage reports of those that are imported later.
"""

import os

__version__ = "0.1.0"

# Libraries read these variables when they are imported. A value that the operator has set is kept.
NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, hf_xet and transformers
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
}
for _name, _value in NO_TELEMETRY.items():
    os.environ[_name] = os.environ.get(_name) or _value
