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
    """`device`, `versions` (a JSON object; empty for what is not installed) and
    `commit` (empty outside a checkout).
    """
    device = jax.devices()[0]
    versions = {"python": platform.python_version()} | {
        name: _read_version(name) for name in _PACKAGES
    }
    kind = f"{device.platform}:{device.device_kind} x{jax.device_count()}"
    return {"device": kind, "versions": json.dumps(versions), "commit": _read_commit()}


def _read_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except (
        importlib.metadata.PackageNotFoundError
    ):  # this package, run from a folder on the path
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
