"""Child processes that run a module of this library and exchange JSON lines.

A child imports the same `scaling` as its parent and nothing from the working folder. It
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
from typing import IO, TextIO

from scaling.config.conversion import JsonObject


def make_python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module, without the working folder on the path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def make_import_variables() -> dict[str, str]:
    """Environment variables with which another Python finds this `scaling` package.

    If the package is not in site-packages (as in a checkout that is not installed), its
    folder goes first on PYTHONPATH.
    """
    settings = {"PYTHONSAFEPATH": "1"}
    folder = str(Path(__file__).resolve().parents[2])
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if folder not in installed:
        others = os.environ.get("PYTHONPATH")
        folders = [folder, others] if others else [folder]
        settings["PYTHONPATH"] = os.pathsep.join(folders)
    return settings


class Child:
    """A child process: messages go to its standard input and come from its output."""

    def __init__(
        self,
        command: Sequence[str],
        log: IO[bytes] | IO[str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process.

        Args:
            command: The executable and its arguments.
            log: File for its standard error; None for the parent's.
            variables: Changes to the environment that it inherits.
        """
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **make_import_variables(), **(variables or {})},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input = self.process.stdin
        self.output = self.process.stdout
        self._partial_line = b""

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message; if the child has ended, nothing happens, and its output ends."""
        with suppress(OSError, ValueError):  # ValueError: `kill` has closed the pipe
            self.input.write(json.dumps(message).encode() + b"\n")
            self.input.flush()

    def receive(self) -> JsonObject | None:
        """Wait for the next message; None if the child has ended."""
        if self.output.closed:  # by `kill`
            return None
        line = self.output.readline()
        return json.loads(line) if line else None

    def read_available(self) -> list[JsonObject] | None:
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
        """Close the child's input, which tells it that no more messages come."""
        with suppress(OSError):
            self.input.close()

    def kill(self) -> None:
        """End the process at once and release its pipes."""
        self.process.kill()
        self.process.wait()
        self.output.close()
        self.close_input()


def open_output_for_messages() -> TextIO:
    """The stream for messages, in the child.

    From here on, what a library prints goes to standard error and not among the
    messages.
    """
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return messages
