"""One of several processes gets a trunk, and a dead or silent owner loses it, whatever
the clocks say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scaling import events as event_types
from scaling.store import leases
from scaling.store.leases import Lease, LeaseLost, Leases

HOLDER = """
import sys, time
from pathlib import Path
from scaling.store.leases import Leases
Leases().take(Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(60)
"""


def ignore(event: event_types.Event) -> None:
    del event


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lease:
    """A lease that a process of another machine holds."""
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_read_machine_id", lambda: "another boot")
        lease = Leases().take(tmp_path)
    assert lease is not None
    return lease


def test_of_several_at_once_one_takes_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        for number in range(1, 6):
            taken = [
                lease
                for lease in pool.map(lambda _: Leases().take(tmp_path), range(16))
                if lease is not None
            ]
            assert [lease.path.name for lease in taken] == [str(number)]
            taken[0].release()
    assert sorted(os.listdir(tmp_path / "claims")) == [
        "1",
        "2",
        "3",
        "4",
        "5",
    ]  # and nothing that was written aside


def test_what_is_released_is_free_at_once_and_what_is_held_is_not(
    tmp_path: Path,
) -> None:
    with Leases().hold(tmp_path, ignore) as lease:
        assert lease is not None
        lease.check()
        assert Leases().take(tmp_path) is None
    assert Leases().take(tmp_path) is not None


def test_a_report_that_fails_leaves_the_lease_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of another version raises an error; then the next process can take the
    trunk.
    """
    with Leases().hold(tmp_path, ignore):
        pass
    reported: list[event_types.Event] = []

    def refuse(event: event_types.Event) -> None:
        reported.append(event)
        raise BrokenPipeError

    monkeypatch.setattr(
        leases.provenance,
        "read_provenance",
        lambda: {"versions": "other", "commit": ""},
    )
    with pytest.raises(BrokenPipeError), Leases().hold(tmp_path, refuse):
        pytest.fail("entered")
    assert [(type(event), event.now) for event in reported] == [
        (event_types.Mixed, "other")
    ]
    with Leases().hold(tmp_path, ignore) as lease:
        assert lease is not None


def test_a_heartbeat_keeps_the_trunk_and_silence_loses_it(
    tmp_path: Path, elsewhere: Lease
) -> None:
    other = Leases(expiry=0.2)
    for _ in range(4):
        assert other.take(tmp_path) is None
        time.sleep(0.15)
        elsewhere.beat()
    assert other.take(tmp_path) is None
    time.sleep(0.3)
    taken = other.take(tmp_path)
    assert taken is not None and taken.path.name == "2"
    with pytest.raises(LeaseLost, match="another process has taken over"):
        elsewhere.check()
    with pytest.raises(LeaseLost):
        elsewhere.check_before(ignore)(event_types.Progress("trunk", 1.0))
    taken.check()


def test_held_beats_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_is_owner_dead", lambda text: False)
    other = Leases(expiry=0.3)
    with Leases(expiry=0.3).hold(tmp_path, ignore):
        for _ in range(10):
            assert other.take(tmp_path) is None
            time.sleep(0.1)


@pytest.mark.parametrize("year", [1970, 2100])
def test_times_of_files_do_not_matter(
    tmp_path: Path, elsewhere: Lease, year: int
) -> None:
    stamp = (year - 1970) * 31_556_952
    os.utime(elsewhere.path, (stamp, stamp))
    other = Leases(expiry=0.2)
    assert other.take(tmp_path) is None
    time.sleep(0.3)
    assert other.take(tmp_path) is not None


def test_a_process_of_this_machine_that_is_gone_loses_the_trunk_at_once(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "taken\n"
        assert Leases().take(tmp_path) is None
        holder.kill()
        holder.wait()
        assert Leases().take(tmp_path) is not None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"machine": 1}',
        b'{"pid": "x"}',
        b"\x00" * 100,
        b"9" * 5000,
        b"\xff",
    ],
)
def test_an_unreadable_lease_is_waited_for(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "1").write_bytes(text)
    other = Leases(expiry=0.0)
    assert other.take(tmp_path) is None
    time.sleep(0.01)
    assert other.take(tmp_path) is not None


def test_another_version_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[event_types.Event] = []
    with Leases().hold(tmp_path, events.append):
        pass
    with Leases().hold(tmp_path, events.append):
        pass
    assert events == []
    monkeypatch.setattr(
        leases.provenance,
        "read_provenance",
        lambda: {"versions": "scaling 9", "commit": ""},
    )
    with Leases().hold(tmp_path, events.append):
        pass
    assert [event.now for event in events] == ["scaling 9"]
