"""Where and with what a run was trained: columns of the run table."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import jax

_PACKAGES = ("scaling", "jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def read_provenance() -> dict[str, str]:
    """What the columns `device`, `versions` and `commit` hold in this process.

    `versions` is a JSON object, with an empty text for a package that is not installed.
    `commit` is empty outside a checkout.
    """
    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        versions[name] = _read_version(name)
    return {
        "device": f"{device.platform}:{device.device_kind} x{jax.device_count()}",
        "versions": json.dumps(versions),
        "commit": _read_commit(),
    }


def _read_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # So it is for this package if it runs from a folder on the path.
        return ""


def _read_commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
