"""What a measurement was made on."""

import os
import platform
from importlib.metadata import version
from typing import Any

from engine.backends.processor import processor_name

PACKAGES = ("torch", "transformers", "grpcio", "numpy")


def description() -> dict[str, Any]:
    """Processor, cores that this process may use, and versions."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
