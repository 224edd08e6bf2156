"""The workshop: what the commands share. A published model never needs it."""

import os
import sys
from pathlib import Path

# Some libraries report to their makers over the network that they are used, some of them as soon as they are imported.
# They are kept from it here, before that. Who sets such a variable himself is obeyed.
for _variable, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
}.items():
    os.environ.setdefault(_variable, _value)
# OpenVINO heeds no variable, and does not report without this module.
sys.modules.setdefault("openvino_telemetry", None)

# The checkpoint that comes with the project; a package that was installed without the checkout has none.
RELEASED_MODEL = Path(__file__).parents[1] / "models" / "clip-koa-small"
