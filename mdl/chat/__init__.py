"""The conversation in a terminal (`conversation.converse`), and the one answer for a script
(`answer.answer_once`). Knows no references and no command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mdl.engine.request import Format
from mdl.profiles import Profile


@dataclass(frozen=True, slots=True)
class Options:
    """What a conversation starts with, as the command line has it.

    `model` is the reference as it was written. `sampling` has only what was asked for, {"temperature": 0.0}:
    a session that goes on keeps its own for the rest, a new one has what the model's `profile` says.
    `session` is the name of a kept conversation; None keeps nothing. `color` is whether a terminal may get
    escape sequences at all (NO_COLOR, TERM=dumb). `format` is what all answers are held to.
    """

    model: str = ""
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    thinking: bool | None = None
    stats: bool = False
    session: str | None = None
    color: bool = True
    profile: Profile = field(default_factory=Profile)
    format: Format | None = None
