"""Laws of the template of conversations."""

from __future__ import annotations

import pytest

from scaling.data.errors import DataError
from scaling.tasks.chat import Message, format_chat, format_chat_prompt

SYSTEM = Message("system", "Be brief.")
HI = Message("user", "Hi")
HELLO = Message("assistant", "Hello")


def test_training_and_generation_have_one_prompt() -> None:
    conversation = [SYSTEM, HI, HELLO, Message("user", "Bye")]
    prompt, completion = format_chat([*conversation, Message("assistant", "Ciao")])
    assert prompt == format_chat_prompt(conversation)
    assert prompt + completion == (
        "System: Be brief.\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant: Ciao"
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "needs messages"),
        ([HI], "the last role is 'user'; it must be 'assistant'"),
        ([HELLO], "no message of the role 'user'"),
        ([SYSTEM, HELLO], "no message of the role 'user'"),
        (
            [Message("asistant", "x"), HELLO],
            "message 1: unknown role .*mean 'assistant'",
        ),
        ([HI, Message("assistant", " ")], "message 2: content = ' ': is empty"),
        ([Message("user", "a\nUser: b"), HELLO], "a line of the content begins with"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_is_rejected(
    messages: list[Message], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        format_chat(messages)
