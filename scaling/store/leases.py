"""Leases on trunks, for processes that share a folder on one machine or over a network
file system.

The leases on a trunk are the files `OUT/trunk-<id>/claims/1`, `2`, ...: the process
that wrote the file with the highest number holds the trunk. The owner appends a byte to
its file every few seconds, its heartbeat, and the word "released" when it is done. A
process takes over the lease, by writing the file with the next number, if it sees no
new byte for `expiry` seconds of its own clock, or if the owner's process is dead on
this host.

Why this is safe on NFS:

- A lease is made with link(2), which the server does in one step and refuses if the
  name exists. If the answer was lost, the link count of the linked file tells whether
  the link was made (Linux, open(2), O_EXCL).
- No process writes to another's file or removes one, so nothing can be overwritten, and
  the numbers only grow.
- A heartbeat is read through a fresh open(2), for which the client asks the server
  (close-to-open consistency). Times are differences of the reader's own clock, so
  clocks may differ.
- A process that was stopped for longer than `expiry` and continues finds the next
  number, and ends at its next chunk. Until then it writes what its successor writes,
  since a run is a function of its configuration, and of two results the first is kept.
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

from scaling.config.conversion import JsonObject
from scaling.events import Event, Mixed, Report
from scaling.store import provenance
from scaling.store.files import append_durably, create_file

EXPIRY = 90.0
"""Seconds without a heartbeat after which a lease may be taken over.

NFS clients may use what they know of a file for 60 seconds before they ask again.
"""

_BEATS_PER_EXPIRY = 9
_RELEASED = "released"


class LeaseLost(RuntimeError):
    """Another process has taken the trunk over, because this one was silent too long."""


@dataclass
class Lease:
    """A trunk that this process holds until `release`, or until it falls silent.

    Attributes:
        path: the file of the lease.
        versions: of the libraries, and this package's commit, as in the run table.
    """

    path: Path
    versions: str

    def check_before(self, report: Report) -> Report:
        """A report that first checks that this process still holds the trunk.

        The report raises LeaseLost if it does not.
        """

        def checked_report(event: Event) -> None:
            self.check()
            report(event)

        return checked_report

    def read_previous_versions(self) -> str | None:
        """The versions of the previous owner; None if there is none or they are
        unknown.
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            number = int(self.path.name) - 1
            text = self.path.with_name(str(number)).read_text()
            return _parse_owner(text)["versions"]
        return None

    @property
    def is_lost(self) -> bool:
        """Whether a later lease exists."""
        number = int(self.path.name) + 1
        return self.path.with_name(str(number)).exists()

    def beat(self) -> None:
        """Append a heartbeat."""
        append_durably(self.path, ".")

    def check(self) -> None:
        """Check that this process still holds the trunk.

        Raises:
            LeaseLost: another process has taken it over.
        """
        if self.is_lost:
            raise LeaseLost(
                f"{self.path.parent}: another process has taken over; "
                "this one was silent for too long"
            )

    def release(self) -> None:
        """Make the trunk free at once."""
        append_durably(self.path, f"\n{_RELEASED}")


class Leases:
    """Takes leases, and remembers when it last saw the leases of others grow."""

    def __init__(self, expiry: float = EXPIRY) -> None:
        self.expiry = expiry
        # By file: its length, and when it was first seen with this length.
        self._seen: dict[Path, tuple[int, float]] = {}

    def take(self, folder: Path) -> Lease | None:
        """The lease on the trunk of a folder; None while another process holds it."""
        leases = _lease_folder(folder)
        leases.mkdir(parents=True, exist_ok=True)
        last = _find_last_number(leases)
        if last and not self._is_file_free(leases / str(last)):
            return None
        path = leases / str(last + 1)
        owner = _describe_this_process()
        if not create_file(path, json.dumps(owner)):
            return None
        return Lease(path, owner["versions"])

    def is_free(self, folder: Path) -> bool:
        """Whether `take` would return a lease now."""
        leases = _lease_folder(folder)
        if not leases.is_dir():
            return True
        last = _find_last_number(leases)
        return not last or self._is_file_free(leases / str(last))

    @contextmanager
    def hold(self, folder: Path, report: Report) -> Iterator[Lease | None]:
        """Take a lease, and keep it alive from a thread until the body ends.

        Args:
            folder: of the trunk.
            report: receives a `Mixed` event if the previous owner had other versions.

        Yields:
            The lease; None while another process holds the trunk.
        """
        lease = self.take(folder)
        if lease is None:
            yield None
            return
        ended = threading.Event()
        thread = threading.Thread(
            target=self._beat_until, args=(lease, ended), daemon=True
        )
        thread.start()
        try:
            before = lease.read_previous_versions()
            if before not in (None, lease.versions):
                report(Mixed(str(folder), before, lease.versions))
            yield lease
        finally:
            ended.set()
            thread.join()
            # If this fails, because the disk is full for example, the lease expires.
            with suppress(OSError):
                lease.release()

    def _beat_until(self, lease: Lease, ended: threading.Event) -> None:
        while not ended.wait(self.expiry / _BEATS_PER_EXPIRY):
            # The next beat may succeed.
            with suppress(OSError):
                lease.beat()

    def _is_file_free(self, path: Path) -> bool:
        """Whether the owner of the last lease is done, dead or silent for too long."""
        try:
            text = path.read_text(errors="replace")
        except OSError:
            text = ""
        if is_ended(text):
            return True
        length, since = self._seen.get(path, (-1, 0.0))
        if len(text) != length:
            self._seen[path] = (len(text), time.monotonic())
            return False
        return time.monotonic() - since > self.expiry


def find_last_lease(folder: Path) -> Path | None:
    """The file of the last lease on the trunk of a folder; None if there never was one.

    It writes nothing.
    """
    leases = _lease_folder(folder)
    with suppress(OSError):
        number = _find_last_number(leases)
        if number:
            return leases / str(number)
    return None


def is_ended(text: str) -> bool:
    """Whether the owner of a lease has released it or is certainly dead.

    Args:
        text: the content of the lease's file.
    """
    return text.endswith(_RELEASED) or _is_owner_dead(text)


def _lease_folder(folder: Path) -> Path:
    """Where the leases on a trunk are; the name is that of the first version."""
    return folder / "claims"


def _find_last_number(leases: Path) -> int:
    """The number of the last lease in a folder of leases; 0 without one."""
    numbers = [
        int(name) for name in os.listdir(leases) if name.isascii() and name.isdecimal()
    ]
    return max(numbers, default=0)


def _describe_this_process() -> JsonObject:
    """What identifies this process on its machine, and its versions."""
    columns = provenance.read_provenance()
    return {
        "host": socket.gethostname(),
        "machine": _read_machine_id(),
        "pid": os.getpid(),
        "started": _read_start_time(os.getpid()),
        "time": time.time(),
        "versions": f"{columns['versions']} {columns['commit']}".strip(),
    }


def _parse_owner(text: str) -> JsonObject:
    """The owner of a lease: the first line of its file without the heartbeats."""
    return json.loads(text.split("\n")[0].rstrip("."))


def _is_owner_dead(text: str) -> bool:
    """Whether the owner of a lease is certainly dead: a process of this machine that no
    longer exists.
    """
    try:
        owner = _parse_owner(text)
        if owner["machine"] is None or owner["machine"] != _read_machine_id():
            return False
        if owner["started"] is None:
            return False
        return _read_start_time(int(owner["pid"])) != owner["started"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def _read_machine_id() -> str | None:
    """An id of this boot of this machine and, within it, of the container that numbers
    the processes; None if it is unknown.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _read_start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since the machine was started.

    A later process with the same number has another start time. None if there is no
    such process, or if it has ended.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None
