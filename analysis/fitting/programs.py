"""The compiled programs of the solver: compiled once in a process, and kept on disk for
the processes after it.

A program is a jitted function of (binding, arrays). It depends on the law and on the
shapes of the arrays, and not on their values, so that tables of about the same size
share it (`analysis.fitting.solver.pad_row_count`).

JAX's own cache finds an executable by its program, which has to be traced and lowered
first: nine tenths of the time that a stored executable takes. The programs of the laws
of the library are therefore stored by what they are made of (`name_executable`), and
loaded without either. A law of the user's own may be any function, which only its
program tells: it is left to JAX's cache.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import platform
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib.version
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from analysis.fitting.data import use_float64
from analysis.laws.base import Binding
from analysis.laws.curves import CURVE_LAWS
from analysis.laws.library import BUILT_IN
from analysis.progress import show_progress

Arrays = tuple[Any, ...]  # the arguments after the binding: trees of arrays
Executable = Callable[..., Any]

_FOLDER = "jax_compilation_cache_dir"
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_STORED_LAWS = BUILT_IN | frozenset(CURVE_LAWS.values())
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
    """Load or compile what these calls need and no earlier call did, side by side: the
    compiler keeps one core busy.
    """
    with _lock:
        missing = {call.key: call for call in calls if call.key not in _executables}
        if not missing:
            return
        folder = _choose_folder()
        for use_folder in (_load_side_by_side, _compile_side_by_side):
            left = {
                key: call for key, call in missing.items() if key not in _executables
            }
            _executables.update(use_folder(left, folder))


def _load_side_by_side(
    calls: Mapping[Hashable, Call], folder: Path | None
) -> dict[Hashable, Executable]:
    """The executables that are stored."""
    paths = {key: _locate(call, folder) for key, call in calls.items()}
    stored = {key: path for key, path in paths.items() if path and is_private(path)}
    if not stored:
        return {}
    with ThreadPoolExecutor(len(stored)) as pool:
        loaded = dict(zip(stored, pool.map(_load, stored.values()), strict=True))
    return {key: program for key, program in loaded.items() if program is not None}


def _compile_side_by_side(
    calls: Mapping[Hashable, Call], folder: Path | None
) -> dict[Hashable, Executable]:
    if not calls:
        return {}
    paths = [_locate(call, folder) for call in calls.values()]
    # JAX cannot store again what it took from its own cache.
    jax_folder = None if all(paths) else folder
    with (
        show_progress(f"compilation of {len(calls)} programs", len(calls)) as progress,
        _use_jax_cache(jax_folder),
        ThreadPoolExecutor(len(calls)) as pool,
    ):
        compiled = {}
        for key, program in zip(
            calls, pool.map(_compile, calls.values(), paths), strict=True
        ):
            compiled[key] = program
            progress.advance()
        return compiled


def _compile(call: Call, path: Path | None) -> Executable:
    """Compile a program and store it, if it has a place."""
    # The precision and the device are settings of the calling thread.
    with use_float64():
        program = call.function.lower(call.binding, *call.arrays).compile()
        if path is not None:
            _store(program, call, path)
        return program


def _store(program: Any, call: Call, path: Path) -> None:
    """Write an executable that other processes can run. One that cannot be stored, or
    not run once it has been, is left out.
    """
    if "custom_call_target" in program.as_text():
        return  # a function of a library, at an address of this process
    try:
        stored = pickle.dumps(serialize_executable.serialize(program))
        _deserialize(stored)(*call.arrays)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(stored)
        os.replace(file.name, path)  # whole, or not there
    except Exception:  # what JAX raises here differs between its versions
        return


def is_private(path: Path) -> bool:
    """Whether a file is there that this user alone can have written.

    An executable is code, and loading it runs it: what others may have put there is
    left alone and compiled anew.
    """
    get_user = getattr(os, "getuid", None)
    try:
        for place in (path, path.parent):
            status = place.stat()
            is_shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
            if get_user is not None and (status.st_uid != get_user() or is_shared):
                return False
    except OSError:
        return False
    return path.is_file()


def _load(path: Path) -> Executable | None:
    """A stored executable; None where it cannot be read."""
    try:
        with use_float64():
            return _deserialize(path.read_bytes())
    except Exception:  # what JAX raises here differs between its versions
        return None


def _deserialize(stored: bytes) -> Executable:
    cpu = jax.local_devices(backend="cpu")[0]
    return serialize_executable.deserialize_and_load(
        *pickle.loads(stored), backend=cpu.client, execution_devices=[cpu]
    )


def _locate(call: Call, folder: Path | None) -> Path | None:
    """Where the executable of a call is stored; None where it is not to be."""
    if folder is None or call.binding.law not in _STORED_LAWS:
        return None
    return folder / f"{call.function.__name__}-{name_executable(call)}"


def name_executable(call: Call) -> str:
    """A name for all that the executable of a call is made of: the source of the
    programs and of the laws, the versions, the settings of JAX and XLA, the law with
    what is fixed and tied, and the shapes of the arrays.
    """
    binding = call.binding
    law = binding.law
    leaves, structure = jax.tree.flatten(call.arrays)
    parts = (
        _describe_setup(),
        call.function.__name__,
        (law.name, law.variables, binding.fixed, binding.tied),
        str(structure),
        [(leaf.shape, str(leaf.dtype)) for leaf in leaves],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _describe_setup() -> str:
    settings = [
        (name, value)
        for name, value in sorted(jax.config.values.items())
        if "cache" not in name
    ]
    parts = (_hash_source(), settings, os.environ.get("XLA_FLAGS"))
    return repr(parts)


@functools.cache
def _hash_source() -> str:
    """A name for the versions of what makes the programs, ours by their source."""
    digest = hashlib.sha256(
        f"{sys.version} {jax.__version__} {jaxlib.version.__version__}".encode()
    )
    package = Path(__file__).parents[1]
    for folder in ("fitting", "laws"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _choose_folder() -> Path | None:
    """The folder of executables: the one that the caller or
    `JAX_COMPILATION_CACHE_DIR` set for JAX, else `find_cache_folder()`. None where it
    cannot be written: programs are then compiled in every process.
    """
    (chosen,) = _read(_FOLDER)
    folder = Path(chosen or find_cache_folder())
    return folder if _make_writable(folder) else None


@contextmanager
def _use_jax_cache(folder: Path | None) -> Iterator[None]:
    """Let JAX store executables in a folder, and take those that are stored; in none if
    there is no folder.
    """
    saved = _read(_FOLDER, _LEAST_SECONDS)
    _configure_cache(None if folder is None else str(folder), 0.0)
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
    if info.is_file():
        lines = info.read_text().splitlines()
        named = [line for line in lines if line.startswith(("flags", "Features"))]
        flags = named[0] if named else ""
    else:
        flags = platform.processor()  # starts a process
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


def _make_writable(folder: Path) -> bool:
    """Whether the folder could be made and written."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
