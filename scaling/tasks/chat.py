"""How a conversation becomes text, for training and for generation.

    System: Answer in one word.
    User: Capital of Peru?
    Assistant: Lima

Every message is a line that begins with the name of its role. The prompt ends with
`Assistant:`, and the completion is a space and the last message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scaling.config.suggestions import did_you_mean
from scaling.data.errors import DataError
from scaling.tasks.examples import Pair

ROLES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
"""What a message of each role begins with."""

STOP = "\nUser:"
"""Generated text ends before the next message of the user."""


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


def format_chat(messages: Sequence[Message]) -> Pair:
    """The prompt and the completion of a conversation that the assistant ends.

    Raises:
        DataError: a role is unknown, a message is empty, the last message is not the
            assistant's, or there is nothing before it.
    """
    if not messages:
        raise DataError("field 'messages' = []: needs messages of user and assistant")
    last = messages[-1]
    check_messages(messages)
    if last.role != "assistant":
        raise DataError(
            f"field 'messages': the last role is {last.role!r}; it must be 'assistant', "
            "whose message is the completion"
        )
    return Pair(format_chat_prompt(messages[:-1]), f" {last.content}")


def format_chat_prompt(messages: Sequence[Message]) -> str:
    """The prompt after which the assistant's answer is generated.

    Raises:
        DataError: a role is unknown, a message is empty, or there is no message of the
            user.
    """
    check_messages(messages)
    if all(message.role != "user" for message in messages):
        raise DataError(
            "field 'messages': there is no message of the role 'user' before the last; "
            "add what the assistant answers"
        )
    lines = [f"{ROLES[message.role]} {message.content}" for message in messages]
    return "\n".join([*lines, ROLES["assistant"]])


def check_messages(messages: Sequence[Message]) -> None:
    """Check roles and contents.

    Raises:
        DataError: a role is unknown, a message is empty, or it holds a line that begins
            as the next message of the user would.
    """
    for number, message in enumerate(messages, start=1):
        field = f"field 'messages', message {number}"
        if message.role not in ROLES:
            hint = did_you_mean(message.role, list(ROLES))
            raise DataError(f"{field}: unknown role {message.role!r}; {hint}")
        if not message.content.strip():
            raise DataError(
                f"{field}: content = {message.content!r}: is empty; remove the message"
            )
        if STOP in "\n" + message.content:
            raise DataError(
                f"{field}: a line of the content begins with {STOP.strip()!r}, which "
                "marks the next message; change the line"
            )
