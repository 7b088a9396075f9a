"""How a model wants to be used: the record of what is set for it. Knows no network and no terminal.

What a profile says is less than what a flag or a request says, and more than what mdl would do without.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdl.engine.request import Chat, EngineSettings, Message

OLLAMA = "ollama.json"  # the configuration of Ollama's models: what lies beside it is as they have it
LARGEST = 1 << 20  # bytes of a file that is read
MOST_MESSAGES = 1000
MOST_PARAMETERS = 100  # Ollama has some thirty
LONGEST_NUMBER = 40  # characters


@dataclass(frozen=True, slots=True)
class Profile:
    """What is set for a model, by the names and in the ranges of `engine.request`.

    `sampling` has values of Sampling, `settings` those of EngineSettings; what is not there is not set.
    `template` is Jinja, None where the model's own is to be used, and `template_source` tells where that came
    from; `completion_template` is the same for texts that are gone on with. `messages` begin every
    conversation. `adapters` are what to load with the weights, as --adapter takes it. `ignored` are
    parameters that mean nothing here, `notes` what could not be used, and why.
    """

    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    template_source: str = ""
    completion_template: str | None = None
    messages: "tuple[Message, ...]" = ()
    adapters: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def chat(self, chat: "Chat", given: Mapping[str, Any]) -> "Chat":
        """A request with what it leaves open filled in; `given` is what it says of the sampling.

        The profile's system is for conversations without one. Its first messages come after the system.
        """
        sampling = {name: value for name, value in self.sampling.items() if name not in given}
        return replace(
            chat,
            messages=self._begun(chat.messages),
            template=chat.template or self.template or "",
            sampling=replace(chat.sampling, **sampling),
        )

    def _begun(self, messages: "tuple[Message, ...]") -> "tuple[Message, ...]":
        from mdl.engine.request import Message

        said = sum(1 for _ in _leading_systems(messages))
        system = messages[:said]
        if self.system and not any(message.role == "system" for message in messages):
            system = (Message("system", self.system),)
        return (*system, *self.messages, *messages[said:])

    def engine_settings(self, settings: "EngineSettings", unsaid: Collection[str] = ()) -> "EngineSettings":
        """How to load the model, where that is left open: what is None, and what is `unsaid`, though it has a
        value."""
        said: dict[str, Any] = {
            name: value
            for name, value in self.settings.items()
            if getattr(settings, name) is None or name in unsaid
        }
        if "parallel" in said and "batch" not in said:
            said["batch"] = max(settings.batch, said["parallel"])
        return replace(settings, **said)


def _leading_systems(messages: "tuple[Message, ...]") -> "Iterator[Message]":
    for message in messages:
        if message.role != "system":
            return
        yield message


def merged(*profiles: Profile) -> Profile:
    """All of them as one; what a later one sets goes before what an earlier one does."""
    result = Profile()
    for profile in profiles:
        result = Profile(
            system=result.system if profile.system is None else profile.system,
            sampling={**result.sampling, **profile.sampling},
            settings={**result.settings, **profile.settings},
            template=result.template if profile.template is None else profile.template,
            template_source=profile.template_source or result.template_source,
            completion_template=(
                result.completion_template
                if profile.completion_template is None
                else profile.completion_template
            ),
            messages=profile.messages or result.messages,
            adapters=(*result.adapters, *profile.adapters),
            ignored=(*result.ignored, *profile.ignored),
            notes=(*result.notes, *profile.notes),
        )
    return result


def as_document(profile: Profile) -> dict[str, Any]:
    """A profile as --json prints it; None is what is not set."""
    return {
        "system": profile.system,
        "parameters": {name: value for name, value in profile.sampling.items() if name != "stop"},
        "stop": list(profile.sampling.get("stop", ())),
        "settings": dict(profile.settings),
        "template_source": profile.template_source or None,
        "messages": [{"role": message.role, "content": message.content} for message in profile.messages],
        "adapters": [text.rpartition("/")[2] for text in profile.adapters],
        "ignored": list(profile.ignored),
        "notes": list(profile.notes),
    }
