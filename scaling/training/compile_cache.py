"""A cache of executables on disk, shared by processes, and counts of its use."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache as jax_cache

_EVENTS = {
    "/jax/compilation_cache/cache_misses": "compiled",
    "/jax/compilation_cache/cache_hits": "reused",
}
_counts: Counter[str] = Counter()


def _count_event(event: str, **details: object) -> None:
    del details
    if event in _EVENTS:
        _counts[_EVENTS[event]] += 1


monitoring.register_event_listener(_count_event)


@contextmanager
def compilation_cache(out: Path) -> Iterator[Counter[str]]:
    """Keep executables in a folder below `out`, one folder for each kind of processor.

    A folder that the user sets by `JAX_COMPILATION_CACHE_DIR` takes precedence.

    Yields:
        A counter that is filled at the end: "compiled" and "reused", the numbers of
        executables of any size.
    """
    counts: Counter[str] = Counter()
    before = _counts.copy()
    settings: dict[str, float | str | None] = {
        "jax_persistent_cache_min_compile_time_secs": 0.0
    }
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009 (unknown to type checkers)
        folder = out / "programs" / _hash_processor()
        settings["jax_compilation_cache_dir"] = str(folder.absolute())
    saved = {name: getattr(jax.config, name) for name in settings}
    _configure_jax(settings)
    try:
        yield counts
    finally:
        counts.update(_counts - before)
        _configure_jax(saved)


def _configure_jax(settings: Mapping[str, float | str | None]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX reads the name of the folder once, unless its cache is reset.
    jax_cache.reset_cache()


def _hash_processor() -> str:
    """A name for the instruction set of this processor.

    Hosts that share a folder may differ in it, and an executable assumes that of the
    host on which it was compiled.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
