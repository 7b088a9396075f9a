"""How other tools write what a profile is: Ollama's Modelfile, and LocalAI's YAML. Knows no models.

What comes out are the fields of a profile (see `profiletext`), and notes on what has no place in one.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mdl.errors import UnsupportedModel, UsageError
from mdl.header import line
from mdl.profiletext import ROLES

if TYPE_CHECKING:
    from mdl.profiles import Profile

MOST_INSTRUCTIONS = 10_000
MOST_NODES = 10_000  # of a YAML document
DEEPEST = 20
INTEGER = "tag:yaml.org,2002:int"
LONGEST_NUMBER = 40  # digits


@dataclass(slots=True)
class Foreign:
    """The fields of a profile as they are found, and what could not be taken over, and why."""

    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any) -> None:
        self.fields[name] = value

    def add(self, name: str, value: Any) -> None:
        self.fields.setdefault(name, []).append(value)

    def set(self, name: str, value: Any) -> None:
        """A setting or a parameter, by any of its names; what is not known is noted."""
        from mdl import parameters

        said = parameters.profile({name: value}, "left out", lenient=True)
        self.notes += said.notes
        self.notes += [f"{ignored} has no place in a profile" for ignored in said.ignored]
        self._keep(said)

    def set_strictly(self, name: str, value: Any) -> None:
        """The same, where what is not known is an error: raises UsageError."""
        from mdl import parameters

        self._keep(parameters.profile({name: value}, "--set"))

    def _keep(self, said: "Profile") -> None:
        for kind, values in (("settings", said.settings), ("parameters", said.sampling)):
            for ours, read in values.items():
                self.fields.setdefault(kind, {})[ours] = list(read) if isinstance(read, tuple) else read


def read(text: str, name: str) -> Foreign:
    """A profile of another tool, told by the file's name and what it holds. Raises UsageError for what is
    neither."""
    if name.endswith((".yaml", ".yml")):
        return local_ai(text)
    if re.search(r"^\s*FROM\s+\S", text, re.IGNORECASE | re.MULTILINE):
        return modelfile(text)
    raise UsageError(
        f"{line(name) or 'the file'} is neither a Modelfile, which has FROM, nor YAML of LocalAI",
        hint="mdl profile import Modelfile, or FILE.yaml",
    )


# Ollama's Modelfile: https://github.com/ollama/ollama/blob/main/docs/modelfile.md


class Instruction(NamedTuple):
    """`key` is the first word of those that have one: the name of a parameter, a role."""

    line: int
    name: str
    key: str
    value: str


def modelfile(text: str) -> Foreign:
    """Raises UsageError, with the line, for what is no Modelfile."""
    found = Foreign()
    for instruction in _instructions(text):
        take = _INSTRUCTIONS.get(instruction.name.upper())
        if take is None:
            raise UsageError(
                f"line {instruction.line}: {line(instruction.name)} is no instruction of a Modelfile",
                hint=f"known: {', '.join(_INSTRUCTIONS)}",
            )
        take(found, instruction)
    if "models" not in found.fields:
        raise UsageError("the Modelfile names no model", hint="FROM MODEL")
    return found


def _instructions(text: str) -> Iterator[Instruction]:
    lines = text.replace("\r\n", "\n").split("\n")  # what else Unicode takes for an end is part of a text
    number = count = 0
    while number < len(lines):
        name, rest = _first_word(lines[number])
        start = number = number + 1
        if not name or name.startswith("#"):
            continue
        key = ""
        if name.upper() in _KEYED:
            key, rest = _first_word(rest)
        if (quote := _opened(rest)) is not None:
            number = _closing(lines, start, quote)
            rest = "\n".join((rest, *lines[start:number])).rstrip()
        count += 1
        if count > MOST_INSTRUCTIONS:
            raise UsageError(f"the Modelfile has more than {MOST_INSTRUCTIONS:,} instructions")
        yield Instruction(start, name, key, _unquoted(rest))


def _first_word(text: str) -> tuple[str, str]:
    """And the rest, behind any spaces and tabs."""
    word, *rest = re.split(r"[ \t]+", text.strip(), maxsplit=1)
    return word, "".join(rest)


_KEYED = ("PARAMETER", "MESSAGE")
_QUOTES = ('"""', '"')


def _opened(value: str) -> str | None:
    """The quotation mark that a value begins with and does not end with."""
    quote = next((quote for quote in _QUOTES if value.startswith(quote)), None)
    closed = quote is None or (len(value) >= 2 * len(quote) and value.endswith(quote))
    return None if closed else quote


def _closing(lines: list[str], start: int, quote: str) -> int:
    """The number of the line that ends with it. Raises UsageError where none does."""
    for number in range(start, len(lines)):
        if lines[number].rstrip().endswith(quote):
            return number + 1
    raise UsageError(f"line {start}: the {quote} is not closed", hint=f"end the text with {quote}")


def _unquoted(value: str) -> str:
    for quote in _QUOTES:
        if len(value) >= 2 * len(quote) and value.startswith(quote) and value.endswith(quote):
            return value[len(quote) : -len(quote)]
    return value


def _from(found: Foreign, instruction: Instruction) -> None:
    value = instruction.value
    is_path = value.startswith(("/", "./", "../", "~")) or value.endswith(".gguf")
    if is_path and "/" not in value:
        value = f"./{value}"
    known = is_path or "://" in value or re.match(r"[\w-]+\.[\w.-]+/|hf\.co/", value)
    found.add("models", value if known else f"ollama://{value}")


def _parameter(found: Foreign, instruction: Instruction) -> None:
    if instruction.key == "stop":
        found.add("stop", instruction.value)
    else:
        found.set(instruction.key, instruction.value)


def _template(found: Foreign, instruction: Instruction) -> None:
    from mdl.gojinja import translate

    try:
        template = translate(instruction.value)
    except UnsupportedModel as failure:
        found.notes.append(f"the template is left out: {failure.message}")
        return
    if template is None:
        found.notes.append("the template only passes the prompt on: the model's own is used")
    else:
        found.put("chat_template", template)


def _message(found: Foreign, instruction: Instruction) -> None:
    if instruction.key not in ROLES:
        role = line(instruction.key)
        raise UsageError(f"line {instruction.line}: MESSAGE has no role {role}", hint=", ".join(ROLES))
    found.add("messages", {"role": instruction.key, "content": instruction.value})


def _adapter(found: Foreign, instruction: Instruction) -> None:
    found.add("adapters", instruction.value)


def _system(found: Foreign, instruction: Instruction) -> None:
    found.put("system", instruction.value)


def _nothing(found: Foreign, instruction: Instruction) -> None:
    found.notes.append(f"{instruction.name.upper()} has no place in a profile")


_INSTRUCTIONS: dict[str, Callable[[Foreign, Instruction], None]] = {
    "FROM": _from,
    "PARAMETER": _parameter,
    "TEMPLATE": _template,
    "SYSTEM": _system,
    "ADAPTER": _adapter,
    "MESSAGE": _message,
    "LICENSE": _nothing,
    "REQUIRES": _nothing,
    "RENDERER": _nothing,
    "PARSER": _nothing,
}


# LocalAI's YAML: https://localai.io/advanced/


def local_ai(text: str) -> Foreign:
    """Raises UsageError, with the line, for what is no such YAML."""
    document = _yaml(text)
    if not isinstance(document, Mapping):
        raise UsageError("the YAML holds no table of names", hint="name: …, parameters: …")
    found = Foreign()
    for name, value in _table("", document):
        take = _LOCAL_AI.get(name)
        if take is not None:
            take(found, value)
        elif isinstance(value, Mapping | list):
            found.notes.append(f"{line(name) or 'a name'} has no place in a profile")
        else:
            found.set(name, value)
    if "chat_template" in found.fields and found.fields.pop("prefixes", None):
        found.notes.append("roles are left out: the chat template writes its own")
    return found


def _table(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a table has, but for what is left empty."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} of the YAML is no table")
    yield from ((str(key), each) for key, each in value.items() if each is not None)


def _text(name: str, value: Any) -> str:
    if isinstance(value, Mapping | list):
        raise UsageError(f"{name} of the YAML is no text")
    return str(value)


def _yaml(text: str) -> Any:
    """As plain values. An anchor that stands for a whole tree of anchors is refused before it is built."""
    import yaml  # type: ignore[import-untyped]

    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _bound(tree, 0, [0])
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(f"{where}no YAML: {line(error.problem) or 'it is broken'}", hint="mend it") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UsageError("it is no YAML", hint="mend it") from None


def _bound(node: Any, depth: int, count: list[int]) -> None:
    """Raises UsageError for a document that is too large, counted as often as anchors repeat its parts."""
    count[0] += 1
    if depth > DEEPEST or count[0] > MOST_NODES:
        raise UsageError(f"the YAML is deeper than {DEEPEST}, or has more than {MOST_NODES:,} values")
    children = getattr(node, "value", None)
    if isinstance(children, str) and node.tag == INTEGER and len(children) > LONGEST_NUMBER:
        raise UsageError(f"line {node.start_mark.line + 1}: a number with too many digits", hint="mend it")
    if isinstance(children, list):
        for child in children:
            for each in child if isinstance(child, tuple) else (child,):
                _bound(each, depth + 1, count)


def _parameters(found: Foreign, value: Any) -> None:
    for name, each in _table("parameters", value):
        if name == "model":
            found.add("models", _source(_text("parameters.model", each)))
        else:
            found.set(name, each)


def _source(model: str) -> str:
    """As a reference: LocalAI has schemes for it, and names files beside its YAML."""
    for scheme, ours in (("huggingface://", "hf://"), ("hf://", "hf://"), ("ollama://", "ollama://")):
        if model.startswith(scheme):
            parts = model.removeprefix(scheme).split("/")
            is_file = ours == "hf://" and len(parts) > 2
            return f"{ours}{'/'.join(parts[:2])}:{'/'.join(parts[2:])}" if is_file else ours + "/".join(parts)
    return model if "://" in model or model.startswith(("/", "~", ".")) else f"./{model}"


def _templates(found: Foreign, value: Any) -> None:
    """Go's templates of LocalAI see other fields than those of Ollama: only Jinja can be taken over."""
    for name, each in _table("template", value):
        ours = {"jinja_template": "chat_template", "chat": "chat_template"}.get(name)
        if name == "completion" and str(each).strip() == "{{.Input}}":
            continue  # the prompt as it is
        if name == "use_tokenizer_template":
            continue  # which is what is used where no other one is given
        if ours and isinstance(each, str) and ("{%" in each or "messages" in each):
            found.put(ours, each)
        elif name == "completion" and isinstance(each, str) and (around := _around(each)) is not None:
            found.put("completion_template", around)
        else:
            found.notes.append(f"template.{line(name)} is left out: it is written for LocalAI")


def _around(template: str) -> str | None:
    """The Jinja for a Go template that only puts a text around the input."""
    parts = re.split(r"\{\{-?\s*\.Input\s*-?\}\}", template)
    if len(parts) < 2 or any("{{" in part or "{%" in part for part in parts):
        return None
    return "{{ prompt }}".join(parts)


def _roles(found: Foreign, value: Any) -> None:
    prefixes = {}
    for role, prefix in _table("roles", value):
        if role in ROLES:
            prefixes[role] = _spaced(_text(f"roles.{role}", prefix))
        else:
            found.notes.append(f"roles.{line(role)} has no place in a profile")
    if prefixes:
        found.put("prefixes", prefixes)


def _spaced(prefix: str) -> str:
    return prefix if prefix.endswith((" ", "\n")) else f"{prefix} "


def _words(found: Foreign, value: Any) -> None:
    words = value if isinstance(value, list) else [value]
    found.put("stop", [_text("stopwords", word) for word in words if word is not None])


_LOCAL_AI: dict[str, Callable[[Foreign, Any], None]] = {
    "name": lambda found, value: found.add("names", _text("name", value)),
    "description": lambda found, value: found.put("description", _text("description", value)),
    "parameters": _parameters,
    "template": _templates,
    "roles": _roles,
    "stopwords": _words,
    "cutstrings": lambda found, _: found.notes.append("cutstrings has no place in a profile"),
    "system_prompt": lambda found, value: found.put("system", _text("system_prompt", value)),
}


def beside(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same with paths that hold wherever the profile lies: relative ones start where the file was."""

    def whole(text: str) -> str:
        try:
            return str((folder / Path(text).expanduser()).absolute())
        except RuntimeError:  # ~ of somebody who is not known
            raise UsageError(f"{line(text)} cannot be found", hint="write the whole path") from None

    changed = dict(fields)
    if "adapters" in changed:
        changed["adapters"] = [whole(text) for text in changed["adapters"]]
    if "models" in changed:
        paths = ("./", "../", "~")
        changed["models"] = [whole(text) if text.startswith(paths) else text for text in changed["models"]]
    return changed
