"""A long computation says how far it is; a short one says nothing."""

from __future__ import annotations

import io
import sys
import time

import pytest

from analysis.progress import show_progress


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_steps(steps: int, seconds: float, stream: io.StringIO) -> str:
    """What is shown of so many steps of so many seconds each."""
    clock = Clock()
    with show_progress("refits", steps, stream=stream, clock=clock) as progress:
        for _ in range(steps):
            clock.now += seconds
            progress.advance()
    return stream.getvalue()


def test_a_call_of_less_than_five_seconds_shows_nothing() -> None:
    assert run_steps(10, 0.49, io.StringIO()) == ""
    assert run_steps(10, 0.49, Terminal()) == ""


def test_a_long_call_prints_lines_with_the_time_left() -> None:
    lines = run_steps(10, 2.0, io.StringIO()).splitlines()
    assert lines == [
        "[ 30%    14 s left]  refits",
        "[ 60%     8 s left]  refits",
        "[ 90%     2 s left]  refits",
    ]


def test_a_terminal_shows_a_bar_instead_of_lines() -> None:
    shown = run_steps(10, 2.0, Terminal())
    assert "refits" in shown
    assert "s left" not in shown


def test_an_inner_computation_leaves_the_time_left_to_the_outer_one() -> None:
    clock, inner_stream, outer_stream = Clock(), io.StringIO(), io.StringIO()
    with show_progress("all", 2, stream=outer_stream, clock=clock) as outer:
        with show_progress("part", 1, stream=inner_stream, clock=clock) as inner:
            clock.now += 6
            inner.advance()
        outer.advance()
    assert inner_stream.getvalue() == ""
    assert outer_stream.getvalue() == "[ 50%     6 s left]  all\n"


def test_an_inner_computation_moves_the_outer_one_through_its_part() -> None:
    clock, stream = Clock(), io.StringIO()
    with show_progress("all", 4, stream=stream, clock=clock) as outer:
        outer.start_part(3)
        with show_progress("part", 6, clock=clock) as inner:
            for _ in range(6):
                clock.now += 3
                inner.advance()
        outer.advance(3)
        clock.now += 6
        outer.advance()
    shares = [line[1:5] for line in stream.getvalue().splitlines()]
    assert shares == [" 25%", " 50%", " 75%", "100%"]


def test_a_computation_that_says_nothing_is_shown_as_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("analysis.progress.PATIENCE", 0.05)
    stream = io.StringIO()
    with show_progress("silent", 2, stream=stream):
        deadline = time.monotonic() + 10
        while not stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert stream.getvalue().startswith("[  0%     ? s left]  silent")
    shown = stream.getvalue()
    time.sleep(0.2)
    assert stream.getvalue() == shown


def test_the_environment_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    for setting, expected in (("off", ""), ("auto", "[ 50%     6 s left]  refits\n")):
        monkeypatch.setenv("SCALING_PROGRESS", setting)
        with show_progress("refits", 2, clock=clock) as progress:
            clock.now += 6
            progress.advance()
        assert capsys.readouterr().err == expected
    assert not sys.stderr.isatty()
