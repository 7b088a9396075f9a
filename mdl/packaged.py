"""How a model wants to be used, by the files that lie beside its weights: those of Ollama's models, templates
of registries, generation_config.json. Knows no network and no terminal.

These files come from outside: what is wrong with them becomes a note, never a failure, because the model
answers without them too.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdl.errors import UnsupportedModel
from mdl.header import encodable, line, read_text
from mdl.profiles import Profile, merged

if TYPE_CHECKING:
    from mdl.model import Model

OLLAMA = "ollama.json"  # the configuration of Ollama's models: what lies beside it is as they have it
GENERATION = "generation_config.json"  # as transformers writes it
MOST_MESSAGES = 1000
# Of a generation_config.json: what says how the next token is chosen. The rest is for transformers alone.
_CHOOSES = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def of(model: "Model") -> Profile:
    """What is set in the folder of a version. Never fails."""
    names = {file.name for file in model.files}
    if OLLAMA in names:
        return _of_ollama(model, names)
    found = _generation(model.folder / GENERATION) if GENERATION in names else Profile()
    templates = [path for path in model.paths("template") if path.suffix == ".jinja"]
    if model.reference.scheme == "oci" and len(templates) == 1:
        return merged(found, _jinja(templates[0]))
    return found


def _generation(path: Path) -> Profile:
    from mdl import parameters

    try:
        said = _json(path, dict)
    except UnsupportedModel as failure:
        return Profile(notes=(failure.message,))
    chosen = {name: said[name] for name in _CHOOSES if name in said}
    if said.get("do_sample") is False:
        chosen["temperature"] = 0
    return parameters.profile(chosen, path.name, lenient=True)


def _jinja(path: Path) -> Profile:
    """A template that was packed beside the weights on purpose."""
    try:
        return Profile(template=read_text(path), template_source=path.name)
    except UnsupportedModel as failure:
        return Profile(notes=(failure.message,))


# The files of Ollama's models


def _of_ollama(model: "Model", names: set[str]) -> Profile:
    found = [Profile(adapters=tuple(map(str, model.paths("adapter"))))]
    for name, read in _READERS.items():
        if name in names:
            try:
                found.append(read(model.folder / name))
            except UnsupportedModel as failure:
                found.append(Profile(notes=(failure.message,)))
    return _within(merged(*found), model.summary.context_length)


def _system(path: Path) -> Profile:
    return Profile(system=read_text(path).strip() or None)


def _go(path: Path) -> Profile:
    """A template in Go's language, unless it only stands in for code of Ollama's.

    Where it can be followed to the letter it goes before the one in the weights, as it does in Ollama: who
    publishes a model there tunes it, and stop words and parameters are chosen with it.
    """
    if renderer := _renderer(path.with_name(OLLAMA)):
        return Profile(template_source=f"the model's own: Ollama has code for it ({renderer})")
    from mdl.gojinja import translate

    try:
        template = translate(read_text(path))
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


def _parameters(path: Path) -> Profile:
    """Each value in its type and range, or a note that tells why not."""
    from mdl import parameters

    return parameters.profile(_json(path, dict), path.name, lenient=True)


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


def _json(path: Path, kind: type) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(read_text(path), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise UnsupportedModel(f"{path.name} is no valid JSON") from None
    if not isinstance(value, kind):
        raise UnsupportedModel(f"{path.name} holds something else than it should")
    return value
