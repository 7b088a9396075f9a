"""Who answers in a conversation: an engine of this machine, or a model at an API. Knows neither."""

from collections.abc import Iterator
from typing import Protocol

from mdl.engine.request import Chat, Delta, Loaded


class Speaker(Protocol):
    """What of `mdl.engine.Engine` a conversation uses."""

    def ready(self, timeout: float | None = None) -> Loaded:
        """Raises Busy after `timeout` seconds. A context of 0 is an unknown one."""

    def chat(self, chat: Chat) -> Iterator[Delta]:
        """Closing the iterator ends the answer."""

    def count(self, chat: Chat) -> int:
        """Tokens of the prompt. Raises UnsupportedModel where nobody can tell."""

    def close(self) -> None: ...
