"""What the results say of the machine that they were made on."""

import platform
import re
from pathlib import Path


def processor() -> str:
    """Returns the name of the processor."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()
