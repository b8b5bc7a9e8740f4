"""What happens in a sweep: one small dataclass for each kind of event.

Training reports events to a callback, a `Report`. A worker process sends them to the
sweep as JSON objects (`event_to_json`), in which the key "event" names the kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened in a sweep."""


Report = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """A report that does nothing."""
    del event


# --- training of a trunk ---------------------------------------------------------


@dataclass(frozen=True)
class TrunkEvent(Event):
    """An event of one trunk.

    Attributes:
        trunk: its id.
        flops: training FLOPs of the steps that the event is about.
    """

    trunk: str
    flops: float | int


@dataclass(frozen=True)
class Started(TrunkEvent):
    """A process has begun with the trunk; what it trained before is not counted yet."""

    flops: float | int = 0.0


@dataclass(frozen=True)
class Restored(TrunkEvent):
    """A checkpoint had these steps, so they are not trained again."""


@dataclass(frozen=True)
class Progress(TrunkEvent):
    """A chunk of steps was trained."""


@dataclass(frozen=True)
class Diverged(Event):
    """The training loss of a run is not finite from `step` on."""

    run_id: str
    step: int


@dataclass(frozen=True)
class Finished(Event):
    """A run has ended; `row` is its row of the run table."""

    row: dict[str, Any]


@dataclass(frozen=True)
class Repeated(Event):
    """A run has ended that already had a result; the earlier result is kept."""

    row: dict[str, Any]


@dataclass(frozen=True)
class Mixed(Event):
    """A trunk continues under other versions of the libraries than it began with.

    Attributes:
        folder: of the trunk.
        before: versions of the process that trained it last.
        now: versions of this process.
    """

    folder: str
    before: str | None
    now: str


# --- how the work is executed ----------------------------------------------------


@dataclass(frozen=True)
class Packed(Event):
    """Trunks of one shape train together.

    Attributes:
        members: number of trunks.
        how: "vmap", "map" (sequentially in one executable) or "solo".
    """

    members: int
    how: str


@dataclass(frozen=True)
class Unpacked(Event):
    """Training several trunks in one executable failed; they train one by one."""

    reason: str


@dataclass(frozen=True)
class Restarted(Event):
    """A job died and was submitted again."""

    reason: str


@dataclass(frozen=True)
class Programs(Event):
    """Executables that a process compiled, or read from the compilation cache."""

    compiled: int = 0
    reused: int = 0


# --- the last event of a job -----------------------------------------------------


@dataclass(frozen=True)
class JobEnd(Event):
    """How a job ended, as the process that did it says."""


@dataclass(frozen=True)
class Done(JobEnd):
    """The job is done.

    Attributes:
        seconds: of a timing job, for each run (seconds per step, seconds to start).
    """

    seconds: list[list[float]] | None = None


@dataclass(frozen=True)
class Failed(JobEnd):
    """The job cannot be done, for the reason `error`."""

    error: str


@dataclass(frozen=True)
class Busy(JobEnd):
    """Another process holds the trunk."""

    error: str = ""


# --- JSON ------------------------------------------------------------------------

_KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind
    for kind in (
        Started,
        Restored,
        Progress,
        Diverged,
        Finished,
        Repeated,
        Mixed,
        Packed,
        Unpacked,
        Restarted,
        Programs,
        Done,
        Failed,
        Busy,
    )
}


def event_to_json(event: Event) -> dict[str, Any]:
    """The JSON object of an event: its kind under "event", beside its fields.

    The row of a finished run is flattened into the object. Optional fields are left out
    where they have their default, except for the FLOPs of a trunk.
    """
    content: dict[str, Any] = {"event": type(event).__name__.lower()}
    if isinstance(event, Finished | Repeated):
        return content | event.row
    for each in dataclasses.fields(event):
        value = getattr(event, each.name)
        if value != each.default or isinstance(event, TrunkEvent):
            content[each.name] = value
    return content


def event_from_json(content: dict[str, Any]) -> Event:
    """The event of a JSON object.

    Raises:
        KeyError: there is no event of that kind.
        TypeError: the object has other keys than the fields of that kind.
    """
    values = dict(content)
    kind = _KINDS[values.pop("event")]
    if kind in (Finished, Repeated):
        return kind(values)  # type: ignore[call-arg]
    return kind(**values)
