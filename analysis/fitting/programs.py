"""The compiled programs of the solver: compiled once in a process, and kept on disk for
the processes after it.

A program is a jitted function of (binding, arrays). It depends on the law and on the
shapes of the arrays, and not on their values, so that tables of about the same size
share it (`analysis.fitting.solver.pad_row_count`). The name of a stored executable is
JAX's own: a hash of the program, the compiler's options and the processor.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from analysis.fitting.data import use_float64
from analysis.laws.base import Binding

Arrays = tuple[Any, ...]  # the arguments after the binding: trees of arrays
Executable = Callable[..., Any]

_FOLDER = "jax_compilation_cache_dir"
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_executables: dict[Hashable, Executable] = {}
_lock = threading.RLock()


class Call(NamedTuple):
    """A program and what it is called with.

    Attributes:
        function: made by `jax.jit` with static_argnums=0.
        binding: its first argument.
        arrays: the others. Their values do not matter to the program.
    """

    function: Any
    binding: Binding
    arrays: Arrays

    @property
    def key(self) -> Hashable:
        """Calls of one key share an executable."""
        leaves, structure = jax.tree.flatten(self.arrays)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        return self.function, self.binding, structure, shapes


def run_program(function: Any, binding: Binding, *arrays: Any) -> Any:
    """The value of a jitted function. Call inside `use_float64()`.

    Args:
        function: made by `jax.jit` with static_argnums=0.
        binding: its first argument.
        arrays: the others: trees of NumPy or JAX arrays.
    """
    call = Call(function, binding, arrays)
    key = call.key
    if key not in _executables:
        compile_programs([call])
    return _executables[key](*arrays)


def compile_programs(calls: Sequence[Call]) -> None:
    """Compile what these calls need and no earlier call compiled, side by side: the
    compiler keeps one core busy.
    """
    with _lock:
        missing = {call.key: call for call in calls if call.key not in _executables}
        if not missing:
            return
        with keep_on_disk(), ThreadPoolExecutor(len(missing)) as pool:
            compiled = pool.map(_compile_call, missing.values())
            _executables.update(zip(missing, compiled, strict=True))


def _compile_call(call: Call) -> Executable:
    # The precision and the device are settings of the calling thread.
    with use_float64():
        return call.function.lower(call.binding, *call.arrays).compile()


@contextmanager
def keep_on_disk() -> Iterator[None]:
    """Store executables, and take those that are stored.

    The folder is the one that the caller or `JAX_COMPILATION_CACHE_DIR` set for JAX,
    else `find_cache_folder()`. Where it cannot be written, programs are compiled as
    without it.
    """
    (chosen,) = _read(_FOLDER)
    folder = chosen or find_cache_folder()
    if chosen is None and not _make_writable(folder):
        yield
        return
    saved = _read(_FOLDER, _LEAST_SECONDS)
    _configure_cache(str(folder), 0.0)
    try:
        yield
    finally:
        _configure_cache(*saved)


def _read(*names: str) -> tuple[Any, ...]:
    """Settings of JAX, which its types do not name."""
    return tuple(getattr(jax.config, name) for name in names)


def _configure_cache(folder: str | None, least_seconds: float) -> None:
    jax.config.update(_FOLDER, folder)
    jax.config.update(_LEAST_SECONDS, least_seconds)
    # JAX reads the name of the folder once, unless its cache is reset.
    jax_cache.reset_cache()


def find_cache_folder() -> Path:
    """Where this user's executables are kept: below the environment's SCALING_CACHE,
    else below `scaling` in the user's cache folder; one folder for each kind of
    processor, because hosts may share it.
    """
    return _find_user_cache() / "programs" / _hash_processor()


def _find_user_cache() -> Path:
    if named := os.environ.get("SCALING_CACHE"):
        return Path(named).expanduser()
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "scaling"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "scaling"
    if sys.platform == "win32" and (named := os.environ.get("LOCALAPPDATA")):
        return Path(named) / "scaling"
    return Path.home() / ".cache" / "scaling"


def _hash_processor() -> str:
    """A name for the instruction set of this processor, which executables assume."""
    info = Path("/proc/cpuinfo")
    flags = platform.processor()
    if info.is_file():
        lines = info.read_text().splitlines()
        named = [line for line in lines if line.startswith(("flags", "Features"))]
        flags = named[0] if named else ""
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


def _make_writable(folder: Path) -> bool:
    """Whether the folder could be made and written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
