"""How a model wants to be used: what its publisher set beside the weights; and the models that mdl recommends
or ships. Knows no network and no terminal.

A profile is read from the folder of a version. What it says is less than what a flag or a request says, and
more than what mdl would do without. Files come from outside: what is wrong with them becomes a note, never a
failure, because the model answers without them too.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdl.errors import MdlError, UnsupportedModel, UsageError
from mdl.header import encodable, line, open_file

if TYPE_CHECKING:
    from mdl.engine.request import Chat, EngineSettings, Message
    from mdl.model import Model

CATALOG = Path(__file__).with_name("catalog.toml")
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
    from. `messages` begin every conversation. `adapters` are files to load with the weights.
    `ignored` are parameters that mean nothing here, `notes` what could not be used, and why.
    """

    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    template_source: str = ""
    messages: "tuple[Message, ...]" = ()
    adapters: tuple[Path, ...] = ()
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
            sampling=replace(chat.sampling, **sampling),
        )

    def _begun(self, messages: "tuple[Message, ...]") -> "tuple[Message, ...]":
        from mdl.engine.request import Message

        said = sum(1 for _ in _leading_systems(messages))
        system = messages[:said]
        if self.system and not any(message.role == "system" for message in messages):
            system = (Message("system", self.system),)
        return (*system, *self.messages, *messages[said:])

    def engine_settings(self, settings: "EngineSettings") -> "EngineSettings":
        """How to load the model, where that is left open."""
        unset: dict[str, Any] = {
            name: value for name, value in self.settings.items() if getattr(settings, name) is None
        }
        return replace(settings, **unset)


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
            messages=profile.messages or result.messages,
            adapters=(*result.adapters, *profile.adapters),
            ignored=(*result.ignored, *profile.ignored),
            notes=(*result.notes, *profile.notes),
        )
    return result


def of(model: "Model") -> Profile:
    """What is set in the folder of a version. Never fails."""
    names = {file.name for file in model.files}
    if OLLAMA in names:
        return _of_ollama(model, names)
    templates = [path for path in model.paths("template") if path.suffix == ".jinja"]
    if model.reference.scheme == "oci" and len(templates) == 1:
        return _jinja(templates[0])
    return Profile()


def as_document(profile: Profile) -> dict[str, Any]:
    """A profile as --json prints it; None is what is not set."""
    return {
        "system": profile.system,
        "parameters": {name: value for name, value in profile.sampling.items() if name != "stop"},
        "stop": list(profile.sampling.get("stop", ())),
        "settings": dict(profile.settings),
        "template_source": profile.template_source or None,
        "messages": [{"role": message.role, "content": message.content} for message in profile.messages],
        "adapters": [path.name for path in profile.adapters],
        "ignored": list(profile.ignored),
        "notes": list(profile.notes),
    }


def _jinja(path: Path) -> Profile:
    """A template that was packed beside the weights on purpose."""
    try:
        return Profile(template=_text(path), template_source=path.name)
    except UnsupportedModel as failure:
        return Profile(notes=(failure.message,))


# The files of Ollama's models


def _of_ollama(model: "Model", names: set[str]) -> Profile:
    found = [Profile(adapters=tuple(model.paths("adapter")))]
    for name, read in _READERS.items():
        if name in names:
            try:
                found.append(read(model.folder / name))
            except UnsupportedModel as failure:
                found.append(Profile(notes=(failure.message,)))
    return _within(merged(*found), model.summary.context_length)


def _system(path: Path) -> Profile:
    return Profile(system=_text(path).strip() or None)


def _go(path: Path) -> Profile:
    """A template in Go's language, unless it only stands in for code of Ollama's.

    Where it can be followed to the letter it goes before the one in the weights, as it does in Ollama: who
    publishes a model there tunes it, and stop words and parameters are chosen with it.
    """
    if renderer := _renderer(path.with_name(OLLAMA)):
        return Profile(template_source=f"the model's own: Ollama has code for it ({renderer})")
    from mdl.gojinja import translate

    try:
        template = translate(_text(path))
    except UnsupportedModel as failure:
        return Profile(template_source="the model's own", notes=(failure.message,))
    if template is None:
        return Profile(template_source="the model's own: Ollama's only passes the prompt on")
    return Profile(template=template, template_source=f"{path.name}, from Go's language")


def _renderer(path: Path) -> str:
    """The name of the code that writes prompts in the place of the template, for some newer models."""
    try:
        return line(_json(path, dict).get("renderer")) or ""
    except UnsupportedModel:
        return ""


def _messages(path: Path) -> Profile:
    from mdl.engine.request import Message

    found = _json(path, list)
    if len(found) > MOST_MESSAGES:
        raise UnsupportedModel(f"{path.name} has more than {MOST_MESSAGES:,} messages")
    messages = []
    for entry in found:
        role, content = (entry.get(name) if isinstance(entry, dict) else None for name in ("role", "content"))
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UnsupportedModel(f"{path.name} has a message that is none")
        messages.append(Message(str(role), encodable(content)))
    return Profile(messages=tuple(messages))


# Parameters. Ollama's name -> ours, and the value by which Ollama says that it is not set

_SAMPLING: dict[str, tuple[str, type, float | None]] = {
    "temperature": ("temperature", float, None),
    "top_k": ("top_k", int, None),
    "top_p": ("top_p", float, None),
    "min_p": ("min_p", float, None),
    "typical_p": ("typical_p", float, None),
    "repeat_penalty": ("repeat_penalty", float, None),
    "repeat_last_n": ("repeat_last_n", int, None),
    "frequency_penalty": ("frequency_penalty", float, None),
    "presence_penalty": ("presence_penalty", float, None),
    "seed": ("seed", int, -1),
    "num_predict": ("max_tokens", int, 0),  # and -1 and -2: until the context is full
}
_SETTINGS: dict[str, tuple[str, type, float | None]] = {
    "num_ctx": ("context", int, 0),
    "num_gpu": ("gpu_layers", int, -1),
    "num_thread": ("threads", int, 0),
}


def _parameters(path: Path) -> Profile:
    """Each value in its type and range, or a note that tells why not."""
    parameters = _json(path, dict)
    if len(parameters) > MOST_PARAMETERS:
        raise UnsupportedModel(f"{path.name} has more than {MOST_PARAMETERS} parameters")
    found = []
    for name, value in parameters.items():
        try:
            found.append(_parameter(name, value))
        except (UsageError, ValueError, OverflowError) as failure:
            cause = failure.message if isinstance(failure, MdlError) else f"{value!r:.40} is no number"
            found.append(Profile(notes=(f"{path.name}: {line(name) or 'a name'}: {cause}",)))
    return merged(*found)


def _parameter(name: str, value: Any) -> Profile:
    from mdl.engine.request import EngineSettings, Sampling

    if name == "stop":
        return _stop(value)
    if name not in _SAMPLING and name not in _SETTINGS:
        return Profile(ignored=(line(name) or "",))
    ours, kind, unset = {**_SAMPLING, **_SETTINGS}[name]
    number: Any = _number(value, kind)
    if unset is not None and number <= unset:
        return Profile()
    if name in _SAMPLING:
        replace(Sampling(), **{ours: number})  # raises UsageError for what is out of range
        return Profile(sampling={ours: number})
    setting: dict[str, Any] = {ours: int(number)}
    replace(EngineSettings(), **setting)
    return Profile(settings={ours: int(number)})


def _stop(value: Any) -> Profile:
    from mdl.engine.request import Sampling

    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError("has to be texts")
    stop = tuple(dict.fromkeys(encodable(text) for text in texts if text))
    Sampling(stop=stop)
    return Profile(sampling={"stop": stop}) if stop else Profile()


def _number(value: Any, kind: type) -> float:
    """A number, also from a text or a list of one, which older ones have. Raises ValueError."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    if kind is float:
        return float(value)
    if value != int(value):
        raise ValueError(value)
    return int(value)


def _within(profile: Profile, trained: int | None) -> Profile:
    """The same with a context that the model has learned."""
    context = profile.settings.get("context", 0)
    if not trained or context <= trained:
        return profile
    note = f"params.json: num_ctx {context:,} is more than the model learned: {trained:,}"
    return replace(profile, settings={**profile.settings, "context": trained}, notes=(*profile.notes, note))


_READERS: dict[str, Callable[[Path], Profile]] = {
    "system": _system,
    "params.json": _parameters,
    "messages.json": _messages,
    "template": _go,
}


# Files


def _text(path: Path) -> str:
    """Raises UnsupportedModel, with the name of the file, for what cannot be read as a text."""
    try:
        with open_file(path) as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UnsupportedModel(f"{path.name} cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise UnsupportedModel(f"{path.name} is longer than {LARGEST:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnsupportedModel(f"{path.name} is no text in UTF-8") from None


def _json(path: Path, kind: type) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(_text(path), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise UnsupportedModel(f"{path.name} is no valid JSON") from None
    if not isinstance(value, kind):
        raise UnsupportedModel(f"{path.name} holds something else than it should")
    return value


# The catalog


def catalog() -> dict[str, dict[str, Any]]:
    """The entries of the catalog that ships with mdl, by name."""
    import tomllib

    models: dict[str, dict[str, Any]] = tomllib.loads(CATALOG.read_text(encoding="utf-8"))["models"]
    return models


def catalog_path(name: str) -> Path | None:
    """The file of a model that ships with mdl, or None when no such model does."""
    entry = catalog().get(name)
    return CATALOG.parent / entry["file"] if entry and "file" in entry else None
