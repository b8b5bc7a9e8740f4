"""Whether libtpu, the TPU's compiler, is installed, and how to silence it on a machine
without TPUs. This module does not load JAX.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

EXTRA = "tpu"
GOOGLE = "0x1ae0"  # PCI vendor id

# With these variables libtpu does not query the metadata server of a cloud machine for
# its name and kind, prints no warning about it, and keeps no log files.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
}


def is_installed() -> bool:
    """Whether libtpu can be imported."""
    return importlib.util.find_spec("libtpu") is not None


def silence_libtpu() -> None:
    """Set the variables that silence libtpu, if it is installed and there is no TPU.

    Call it before JAX looks for devices. A machine on which a PCI device of Google is
    visible keeps its environment.
    """
    if not is_installed():
        return
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if any(vendor.read_text().strip() == GOOGLE for vendor in vendors):
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
