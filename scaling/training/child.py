"""Child processes that run a module of this library and speak JSON lines.

A child imports the same `scaling` as its parent and nothing from the working folder: it
starts in Python's safe-path mode, so that an `optax.py` in the folder where a sweep is
started is not executed.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TextIO


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module, without the working folder on the path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def import_settings() -> dict[str, str]:
    """Environment variables with which another Python finds this `scaling` package.

    Where the package is not in site-packages (a checkout that is not installed, say),
    its folder goes first on PYTHONPATH.
    """
    settings = {"PYTHONSAFEPATH": "1"}
    folder = str(Path(__file__).resolve().parents[2])
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if folder not in installed:
        others = os.environ.get("PYTHONPATH")
        settings["PYTHONPATH"] = os.pathsep.join(
            [folder, others] if others else [folder]
        )
    return settings


class Child:
    """A child process: messages go to its standard input and come from its output."""

    def __init__(
        self,
        command: Sequence[str],
        log: IO[Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process.

        Args:
            command: the program and its arguments.
            log: file for its standard error; None for the parent's.
            variables: changes to the environment that it inherits.
        """
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **import_settings(), **(variables or {})},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self._partial_line = b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message. Whether the child is gone shows where its output ends."""
        with suppress(OSError, ValueError):  # ValueError: `kill` has closed the pipe
            self.input.write(json.dumps(message).encode() + b"\n")
            self.input.flush()

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; None if the child has ended."""
        if self.output.closed:  # by `kill`
            return None
        line = self.output.readline()
        return json.loads(line) if line else None

    def read_available(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived, without waiting; None if the child has ended.

        The output must have been made non-blocking.
        """
        data = self.output.read()
        if data is None:
            return []
        if not data:
            return None
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close_input(self) -> None:
        """Tell the child that no more messages come."""
        with suppress(OSError):
            self.input.close()

    def kill(self) -> None:
        """End the process at once and release its pipes."""
        self.process.kill()
        self.process.wait()
        self.output.close()
        self.close_input()


def open_output_for_messages() -> TextIO:
    """In the child: the stream for messages.

    Whatever a library prints goes to standard error instead, not among the messages.
    """
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return messages
