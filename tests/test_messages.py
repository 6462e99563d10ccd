"""Every message of the package, as a user would read it."""

from __future__ import annotations

import re

from list_messages import PACKAGE, list_messages

PATTERNS = (r"^\s+raise \w", r"\.warning\(")
MESSAGES = [message for message in list_messages() if message.kind != "SystemExit"]
# Words that do not mean in English what they were meant to say here.
MISLEADING = re.compile(r"\b(address(es)?|deviation|goes? on|going on|has another hash)\b")


def test_the_list_is_complete():
    sources = [file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")]
    raised, warned = (sum(len(re.findall(pattern, source, re.M)) for source in sources) for pattern in PATTERNS)
    errors = sum(message.is_error for message in list_messages())
    assert 150 < errors <= raised < errors + 10  # some raise again what they have caught
    assert sum(message.kind == "warning" for message in list_messages()) == warned


def test_messages_say_something_in_one_line_of_plain_words():
    for message in MESSAGES:
        said = re.sub(r"\{[^{}]*\}", "", message.text)
        assert "\n" not in message.text and "  " not in message.text, message
        assert len(said.split()) >= 2 or "{" in message.text, message
        assert not MISLEADING.search(said.replace("<address of machine 0>", "")), message
