"""Compiled programs kept on disk from one process to the next, and counts of them."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache as jax_cache

_EVENTS = {
    "/jax/compilation_cache/cache_misses": "compiled",
    "/jax/compilation_cache/cache_hits": "reused",
}
_counts: Counter[str] = Counter()


def _count(event: str, **details: Any) -> None:
    del details
    if event in _EVENTS:
        _counts[_EVENTS[event]] += 1


monitoring.register_event_listener(_count)


@contextmanager
def compilation_cache(out: Path) -> Iterator[Counter[str]]:
    """Keep what is compiled in a folder below `out`, of this kind of machine, and yield
    the counts so far.

    Counts: "compiled" and "reused", programs of any size. A folder that the user has
    chosen, `JAX_COMPILATION_CACHE_DIR`, goes before.
    """
    counts: Counter[str] = Counter()
    before = _counts.copy()
    changes: dict[str, Any] = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009 (unknown to type checkers)
        changes["jax_compilation_cache_dir"] = str(
            (out / "programs" / _machine()).absolute()
        )
    saved = {name: getattr(jax.config, name) for name in changes}
    _configure(changes)
    try:
        yield counts
    finally:
        counts.update(_counts - before)
        _configure(saved)


def _configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()  # JAX looks at the folder's name once


def _machine() -> str:
    """What a program compiled here may assume of the processor: hosts that share a
    folder may differ in it.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
