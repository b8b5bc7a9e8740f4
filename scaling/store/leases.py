"""Who trains what in a folder that several processes share, on one machine or over a
network file system.

The claims of a trunk are the files `OUT/trunk-<id>/claims/1`, `2`, ...: whoever wrote
the last one holds the trunk. A holder appends a byte to its own file every few seconds,
its heartbeat, and a last word when it is done. Who finds neither a new byte for
`expiry` seconds of its own clock, nor the holder's process where it can look, writes
the next.

Why this is safe on NFS. A claim is made with link(2), which the server does at once or
not at all and refuses if the name exists; where the answer was lost, the link count of
the file linked tells (Linux, open(2), O_EXCL). Nobody ever writes another's file or
removes one, so there is nothing to overwrite: the number of a claim only grows. A
heartbeat is read through a fresh open(2), which has the server asked for the file as it
is (close-to-open consistency), and times are differences of the reader's own clock, so
that clocks may differ. A holder that was stopped for longer than `expiry` and wakes up
finds the next number and ends at its next chunk; what it may have written until then is
what its successor writes, since a run is a function of its configuration, and of two
results the first stays.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.events import Event, Mixed, Report
from scaling.store import provenance
from scaling.store.files import create_file

EXPIRY = 90.0  # seconds without a heartbeat; clients of NFS may hold back what they know of a file for 60
_BEATS = 9  # in that time
_RELEASED = "released"


class ClaimLost(RuntimeError):
    """Another process has taken the trunk over: this one was silent for too long."""


@dataclass
class Claim:
    """A trunk that this process holds, until `release` or until it falls silent.

    Attributes:
        path: of its file. versions: of the libraries and of this one's commit, as in
        the run table.
    """

    path: Path
    versions: str

    def checking(self, report: Report) -> Report:
        """A report that first sees whether the trunk is still this process's."""

        def checked(event: Event) -> None:
            self.check()
            report(event)

        return checked

    def begun_under(self) -> str | None:
        """The versions of the holder before; None where there is none, or it did not
        say.
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _owner(
                self.path.with_name(str(int(self.path.name) - 1)).read_text()
            )["versions"]
        return None

    @property
    def lost(self) -> bool:
        """Whether a later claim exists."""
        return _next(self.path).exists()

    def beat(self) -> None:
        """Show that the holder lives."""
        _append(self.path, ".")

    def check(self) -> None:
        """Raise ClaimLost if the trunk was taken over."""
        if self.lost:
            raise ClaimLost(
                f"{self.path.parent}: another process has taken over; this one was silent for too long"
            )

    def release(self) -> None:
        """Let the next one have the trunk at once."""
        _append(self.path, f"\n{_RELEASED}")


class Claims:
    """Takes claims, and remembers since when it has heard nothing of those that others
    hold.
    """

    def __init__(self, expiry: float = EXPIRY) -> None:
        self.expiry = expiry
        self._heard: dict[
            Path, tuple[int, float]
        ] = {}  # length of a claim's file, and when it was first that long

    def take(self, folder: Path) -> Claim | None:
        """The claim of a trunk's folder, or None while another process holds it."""
        folder = folder / "claims"
        folder.mkdir(parents=True, exist_ok=True)
        last = _last(folder)
        if last and not self._is_free(folder / str(last)):
            return None
        path = folder / str(last + 1)
        me = _me()
        return (
            Claim(path, me["versions"]) if create_file(path, json.dumps(me)) else None
        )

    def is_free(self, folder: Path) -> bool:
        """Whether `take` would now give the claim of a trunk's folder, to a process
        that has watched as this one.
        """
        folder = folder / "claims"
        return (
            not folder.is_dir()
            or not (last := _last(folder))
            or self._is_free(folder / str(last))
        )

    @contextmanager
    def held(self, folder: Path, report: Report) -> Iterator[Claim | None]:
        """Take a claim and keep it alive from a thread of its own; None while another
        process holds it.
        """
        claim = self.take(folder)
        if claim is None:
            yield None
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(claim, ended), daemon=True)
        thread.start()
        try:
            if (before := claim.begun_under()) not in (None, claim.versions):
                report(Mixed(str(folder), before, claim.versions))
            yield claim
        finally:
            ended.set()
            thread.join()
            with suppress(OSError):  # a full disk, say: the claim then expires
                claim.release()

    def _beat(self, claim: Claim, ended: threading.Event) -> None:
        while not ended.wait(self.expiry / _BEATS):
            with suppress(OSError):  # the next beat may succeed
                claim.beat()

    def _is_free(self, path: Path) -> bool:
        """Whether the holder of the last claim is done, dead or silent for too long."""
        try:
            text = path.read_text(errors="replace")
        except OSError:
            text = ""
        if is_ended(text):
            return True
        length, since = self._heard.get(path, (-1, 0.0))
        if len(text) != length:
            self._heard[path] = (len(text), time.monotonic())
            return False
        return time.monotonic() - since > self.expiry


def last_claim(folder: Path) -> Path | None:
    """The last claim of a trunk's folder, for who only looks; None where nobody ever
    claimed it.
    """
    folder = folder / "claims"
    with suppress(OSError):
        return folder / str(number) if (number := _last(folder)) else None
    return None


def is_ended(text: str) -> bool:
    """Whether who wrote a claim has let go of it, or is certain to be gone."""
    return text.endswith(_RELEASED) or _is_dead(text)


def _last(folder: Path) -> int:
    """The number of the last claim in a folder; 0 without one."""
    return max(
        (
            int(name)
            for name in os.listdir(folder)
            if name.isascii() and name.isdecimal()
        ),
        default=0,
    )


def _me() -> dict[str, Any]:
    """This process, as far as another one of the same machine can look it up, and what
    it is.
    """
    there = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }
    columns = provenance.read_provenance()
    return {
        **there,
        "time": time.time(),
        "versions": f"{columns['versions']} {columns['commit']}".strip(),
    }


def _owner(text: str) -> dict[str, Any]:
    """Who wrote a claim: its first line without the heartbeats."""
    return json.loads(text.split("\n")[0].rstrip("."))


def _is_dead(text: str) -> bool:
    """Whether the process that a claim names is certain to be gone: one of this machine
    that is not there any more.
    """
    try:
        owner = _owner(text)
        there = owner["machine"] is not None and owner["machine"] == _machine()
        return (
            there
            and owner["started"] is not None
            and _started(int(owner["pid"])) != owner["started"]
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def _machine() -> str | None:
    """This boot of this machine and, within it, the container whose process numbers
    these are; None if unknown.
    """
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return None


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was: what a recycled
    number cannot repeat.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _next(path: Path) -> Path:
    return path.with_name(str(int(path.name) + 1))


def _append(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
