"""What a profile says of a model that an API runs, put into requests that leave it open. Knows no HTTP.

Parameters, the system and the first messages. Templates are the API's own, and so is how the model is loaded.
"""

from collections.abc import Mapping
from typing import Any

from mdl.apiengine import fields
from mdl.profiles import Profile
from mdl.upstream import Upstream

CHAT, COMPLETIONS = "chat/completions", "completions"
LIMITS = ("max_tokens", "max_completion_tokens")  # both say the same
SYSTEMS = ("system", "developer")


def filled(body: Mapping[str, Any], route: str, profile: Profile, place: Upstream) -> dict[str, Any]:
    """The body of a request with what it does not say, or says null to, as the profile has it."""
    if route not in (CHAT, COMPLETIONS):
        return dict(body)
    said = {name for name, value in body.items() if value is not None}
    said |= set(LIMITS) if said.intersection(LIMITS) else set()
    usual = fields(profile.sampling, place, is_chat=route == CHAT)
    found = {**body, **{name: value for name, value in usual.items() if name not in said}}
    if route == CHAT and isinstance(messages := body.get("messages"), list):
        found["messages"] = _begun(messages, profile)
    return found


def _begun(messages: list[Any], profile: Profile) -> list[Any]:
    """As with models that run here: the profile's system is for conversations without one, and its first
    messages come after the system."""
    systems = [_is_system(message) for message in messages]
    leading = systems.index(False) if False in systems else len(systems)
    own = [{"role": "system", "content": profile.system}] if profile.system and not any(systems) else []
    begin = [{"role": message.role, "content": message.content} for message in profile.messages]
    return [*own, *messages[:leading], *begin, *messages[leading:]]


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in SYSTEMS
