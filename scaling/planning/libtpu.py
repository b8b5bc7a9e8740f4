"""Whether the TPU's compiler is here, and keeping it quiet where there is no TPU. No
JAX is loaded here.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

EXTRA = "tpu"

# A machine without TPUs is not asked for its name and kind; libtpu neither complains of
# that nor keeps logs.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
}


def installed() -> bool:
    """Whether libtpu can be imported."""
    return importlib.util.find_spec("libtpu") is not None


def hush() -> None:
    """Keep JAX, where libtpu is installed and no TPU is, from printing at every start
    what it does not find.

    To be called before JAX looks for devices; a machine with a chip of Google's (PCI
    vendor 0x1ae0), as far as is seen, is left alone.
    """
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if installed() and not any(v.read_text().strip() == "0x1ae0" for v in vendors):
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
