"""A profile as people write it, in TOML: read strictly, and written. Knows no models and no network.

    names = ["gpt-4", "gpt-4o"]            # what clients may call it
    models = ["Qwen/Qwen3-0.6B-GGUF"]      # for which models; under its names, the first that is here
    paths = ["/v1/chat/completions"]       # over which API paths; none is all
    system = "Answer in one sentence."
    stop = ["###"]
    prefixes = { user = "User: ", assistant = "Assistant: " }     # for models without a chat template
    chat_template = "…"                    # Jinja; chat_template_file is a file beside
    completion_template = "…{{ prompt }}…" # Jinja, for texts that are gone on with
    adapters = ["run@latest=0.8"]          # to load with the weights, as --adapter takes them
    [settings]                             # when it is loaded: context, gpu_layers, …
    [parameters]                           # for each answer: temperature, top_p, …
    [[messages]]                           # with which each conversation begins: role, content

A file holds one profile, whose title is the file's name, or several as [[profile]] with a `title` each.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mdl.errors import DiskError, MdlError, UnsupportedModel, UsageError
from mdl.matching import PATHS, Condition
from mdl.profiles import Profile, merged

if TYPE_CHECKING:
    from mdl.engine.request import Message

VERSION = 1
LARGEST = 1 << 20  # bytes of a file
MOST_PROFILES = 1000  # in a file
MOST_ENTRIES = 256  # of a list
MOST_MESSAGES = 1000
LONGEST_ENTRY = 1024  # characters
FIELDS = (
    *("title", "description", "names", "models", "paths", "system", "stop", "prefixes", "chat_template"),
    *("chat_template_file", "completion_template", "completion_template_file", "settings", "parameters"),
    *("messages", "adapters"),
)
PREFIXES = ("system", "user", "assistant", "end")
ROLES = ("system", "user", "assistant")
# What only users may set: files of this machine, and names that go before others.
_OWN = ("names", "adapters", "chat_template_file", "completion_template_file")
_HEADS = re.compile(r"^[ \t]*\[\[[ \t]*profile[ \t]*\]\]", re.MULTILINE)
_HEAD = ("version", "profile")  # of a file with several
_NAME = re.compile(r"[^\x00-\x20\x7f/\\][^\x00-\x1f\x7f\\]{0,199}")


@dataclass(frozen=True, slots=True)
class Written:
    """A profile with what it is for. `names` are what it may be asked for by, `models` the models that it
    is for, `paths` the API paths; empty is any.
    """

    title: str
    source: str
    profile: Profile
    description: str = ""
    names: tuple[str, ...] = ()
    models: tuple[Condition, ...] = ()
    paths: tuple[str, ...] = ()
    shipped: bool = False
    beside: tuple[Path, ...] = ()  # files from which its templates came


def read(path: Path) -> list[Written]:
    """The profiles of a file. Raises UsageError with the line for what is not as it has to be, DiskError."""
    return parse(load(path), path.stem, str(path), path.parent)


def load(path: Path) -> str:
    """The text of a file, within bounds. Raises UsageError, DiskError."""
    from mdl.header import open_file

    try:
        with open_file(path) as file:
            data = file.read(LARGEST + 1)
    except (OSError, UnsupportedModel) as error:
        cause = getattr(error, "strerror", None) or "it is not a regular file"
        raise DiskError(f"{path} cannot be read: {cause}", hint="check its permissions") from None
    if len(data) > LARGEST:
        raise UsageError(f"{path} is longer than {LARGEST:,} bytes", hint="write less into it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8", hint="save it as UTF-8") from None


def parse(text: str, title: str, source: str, folder: Path, *, shipped: bool = False) -> list[Written]:
    """The profiles of a text. Raises UsageError that says where."""
    import tomllib

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not valid TOML: {error}"[:500], hint="mend it") from None
    version = document.pop("version", VERSION)
    if version != VERSION:
        raise UsageError(
            f"{source} has version {version!r:.40}, this mdl knows {VERSION}", hint="update mdl, or mend it"
        )
    if "profile" not in document:
        return [_Reader(document, text, source, folder, shipped=shipped).written(title)]
    extra = [name for name in document if name != "profile"]
    entries = document["profile"]
    if extra or not isinstance(entries, list) or len(entries) > MOST_PROFILES:
        what = f"{extra[0]!r:.80} cannot stand beside" if extra else f"at most {MOST_PROFILES:,} of"
        raise UsageError(f"{source}: {what} [[profile]]", hint="write it below one of them")
    begins = [found.start() for found in _HEADS.finditer(text)]
    begins = begins if len(begins) == len(entries) else [0] * len(entries)  # written in some other way
    return [
        _Reader(entry, text, f"{source}, profile {number}", folder, begin, shipped=shipped).written("")
        for number, (entry, begin) in enumerate(zip(entries, begins, strict=True), 1)
    ]


def text(document: Mapping[str, Any], comments: Collection[str] = ()) -> str:
    """A profile as the TOML of a file, below comments. Raises UsageError for what `parse` would refuse."""
    import tomli_w

    written = tomli_w.dumps(
        {name: document[name] for name in FIELDS if name in document}, multiline_strings=True
    )
    head = "".join(f"# {_one_line(comment)}\n" for comment in comments)
    parse(written, "profile", "the profile", Path())
    return head + written


def as_text(written: Written) -> str:
    """What a profile that was read sets, as TOML."""
    profile = written.profile
    fields = {
        "description": written.description,
        "names": list(written.names),
        "models": [condition.text for condition in written.models],
        "paths": list(written.paths),
        "system": profile.system,
        "chat_template": profile.template,
        "completion_template": profile.completion_template,
        "settings": _plain(profile.settings),
        "parameters": _plain(profile.sampling),
        "messages": [{"role": each.role, "content": each.content} for each in profile.messages],
        "adapters": list(profile.adapters),
    }
    return text({name: value for name, value in fields.items() if value})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def prefixed(prefixes: Mapping[str, str]) -> str:
    """A chat template that writes each turn behind the prefix of its role."""
    end = _quoted(prefixes.get("end", "\n"))
    system, user, assistant = (_quoted(prefixes.get(role, "")) for role in ROLES)
    return (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ " + system + " }}"
        "{% elif message.role == 'assistant' %}{{ " + assistant + " }}"
        "{% else %}{{ " + user + " }}{% endif %}"
        "{{ message.content }}"
        "{% if add_generation_prompt or not loop.last %}{{ " + end + " }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ " + assistant + " }}{% endif %}"
    )


def _quoted(value: str) -> str:
    """A text as Jinja writes it."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + re.sub(r"[^ -~]", lambda match: f"\\U{ord(match[0]):08x}", escaped) + "'"


def _one_line(value: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())[:300]


class _Reader:
    """The fields of one profile. `text` is that of the file, in which lines are looked for from `begin` on.
    What is `shipped` may come from anywhere, and not set what is for users."""

    def __init__(
        self, fields: Any, text: str, source: str, folder: Path, begin: int = 0, *, shipped: bool = False
    ) -> None:
        self._text, self._source, self._folder, self._begin = text, source, folder, begin
        self._shipped = shipped
        self._beside: list[Path] = []
        if not isinstance(fields, Mapping):
            raise UsageError(f"{source} is no table", hint="write it below [[profile]]")
        self._fields = fields
        for name in fields:
            if name not in FIELDS:
                self.fail(name, "is no field of a profile", _place(name))
            if shipped and name in _OWN:
                self.fail(name, "is for profiles of users")

    def fail(self, name: str, what: str, hint: str = "mdl profile new shows what there is") -> NoReturn:
        raise UsageError(f"{self.where(name)}{_one_line(repr(name)[:80])} {what}", hint=hint)

    def where(self, name: str) -> str:
        """The file, and the line that sets this, where it is found."""
        key = re.escape(name.rpartition(".")[2])
        found = re.compile(rf'^[ \t]*(\[+ *)?"?{key}"?[ \t]*[=\].]', re.M).search(self._text, self._begin)
        line = f", line {self._text.count(chr(10), 0, found.start()) + 1}" if found else ""
        return f"{self._source}{line}: "

    def written(self, title: str) -> Written:
        return Written(
            title=title or self.title(),
            source=self._source,
            profile=self.profile(),
            description=self.word("description") or "",
            names=self.texts("names", check=_NAME),
            models=self.models(),
            paths=self.paths(),
            shipped=self._shipped,
            beside=tuple(self._beside),
        )

    def title(self) -> str:
        title = self.word("title")
        if not title or not _NAME.fullmatch(title):
            self.fail("title", "is missing" if title is None else "cannot be a title")
        return title

    def profile(self) -> Profile:
        template, origin = self.template()
        set_by_hand = self.values()
        stop = self.stop() or set_by_hand.sampling.get("stop", ()) or self.turns()
        return merged(
            set_by_hand,
            Profile(
                system=self.word("system"),
                sampling={"stop": stop} if stop else {},
                template=template,
                template_source=origin,
                completion_template=self.jinja("completion_template"),
                messages=self.messages(),
                adapters=tuple(map(self.adapter, self.texts("adapters"))),
            ),
        )

    def values(self) -> Profile:
        from mdl import parameters

        found = [Profile()]
        for name in ("settings", "parameters"):
            table = self.table(name)
            for key, value in table.items():
                found.append(self.value(parameters.profile, name, key, value))
        return merged(*found)

    def value(self, read: Any, table: str, key: str, value: Any) -> Profile:
        try:
            profile: Profile = read({key: value}, table)
        except MdlError as failure:
            raise UsageError(f"{self.where(key)}{failure.message}", hint=failure.hint) from None
        return profile

    def template(self) -> tuple[str | None, str]:
        prefixes = self.table("prefixes")
        for name, value in prefixes.items():
            if name not in PREFIXES:
                self.fail(f"prefixes.{name}", "is no prefix", _nearest(name, PREFIXES))
            if not isinstance(value, str):
                self.fail(f"prefixes.{name}", "has to be a text")
        written = self.jinja("chat_template")
        if prefixes and written is not None:
            self.fail("prefixes", "cannot go with a chat template, which writes its own")
        if prefixes:
            return prefixed(prefixes), f"prefixes of {self._source}"
        return written, self._source if written is not None else ""

    def turns(self) -> tuple[str, ...]:
        """With prefixes, an answer ends where the model begins to speak for the user."""
        user = str(self.table("prefixes").get("user", "")).strip()
        return (user,) if user else ()

    def jinja(self, name: str) -> str | None:
        inline, beside = self.word(name), self.word(f"{name}_file")
        if inline is not None and beside is not None:
            self.fail(f"{name}_file", f"cannot go with {name}")
        if beside is None:
            return inline
        self._beside.append(self.path(f"{name}_file", beside))
        try:
            return load(self._beside[-1])
        except MdlError as failure:
            raise UsageError(f"{self.where(f'{name}_file')}{failure.message}", hint=failure.hint) from None

    def messages(self) -> "tuple[Message, ...]":
        from mdl.engine.request import Message

        found = self._fields.get("messages", [])
        if not isinstance(found, list) or len(found) > MOST_MESSAGES:
            self.fail("messages", f"have to be a list of at most {MOST_MESSAGES:,}")
        for each in found:
            right = isinstance(each, Mapping) and set(each) == {"role", "content"}
            if not right or each["role"] not in ROLES or not isinstance(each["content"], str):
                self.fail("messages", f"have to be tables of role ({', '.join(ROLES)}) and content")
        return tuple(Message(each["role"], each["content"]) for each in found)

    def models(self) -> tuple[Condition, ...]:
        read = partial(Condition.parse, folder=self._folder)
        return tuple(self.checked("models", read, each) for each in self.texts("models"))

    def paths(self) -> tuple[str, ...]:
        found = self.texts("paths")
        for each in found:
            if not each.startswith("/"):
                self.fail(
                    "paths", f"cannot hold {each!r:.80}", "API paths, such as /v1/chat/completions, /v1/*"
                )
        return found

    def stop(self) -> tuple[str, ...]:
        return tuple(
            self.value(_parameters, "stop", "stop", self._fields.get("stop")).sampling.get("stop", ())
        )

    def adapter(self, given: str) -> str:
        """A reference, or a path that starts at the profile's own folder; either with =SCALE."""
        from mdl.adapters import Asked, asked
        from mdl.reference import Reference

        said: Asked = self.checked("adapters", asked, given)
        is_path = said.name.startswith(PATHS) or (said.name.endswith(".gguf") and ":" not in said.name)
        path = self.path("adapters", said.name) if is_path or "://" not in said.name else None
        if path is not None and (is_path or _is_there(path)):
            return said._replace(name=str(path)).text
        self.checked("adapters", Reference.parse, said.name)
        return given

    def checked(self, name: str, read: Callable[[str], Any], given: str) -> Any:
        """What this reads of a text; its errors with the place."""
        try:
            return read(given)
        except UsageError as failure:
            self.fail(name, f"cannot hold {failure.message}", failure.hint)

    def path(self, name: str, given: str) -> Path:
        try:
            found = self._folder / Path(given).expanduser()
        except RuntimeError:  # ~ of somebody who is not known
            self.fail(name, f"cannot be {given!r:.80}", "write the whole path")
        if not given.isprintable():
            self.fail(name, f"cannot be {given!r:.80}", "a path of visible characters")
        return found

    def table(self, name: str) -> Mapping[str, Any]:
        found = self._fields.get(name, {})
        if not isinstance(found, Mapping):
            self.fail(name, "has to be a table")
        return found

    def word(self, name: str) -> str | None:
        found = self._fields.get(name)
        if found is not None and not isinstance(found, str):
            self.fail(name, "has to be a text")
        return found

    def texts(self, name: str, check: re.Pattern[str] | None = None) -> tuple[str, ...]:
        found = self._fields.get(name, [])
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or len(found) > MOST_ENTRIES:
            self.fail(name, f"has to be a list of at most {MOST_ENTRIES} texts")
        for each in found:
            if not isinstance(each, str) or not 0 < len(each) <= LONGEST_ENTRY:
                self.fail(name, f"has to hold texts of 1 to {LONGEST_ENTRY:,} characters")
            if check is not None and not check.fullmatch(each):
                self.fail(name, f"cannot hold {each!r:.80}", "a name such as gpt-4")
        return tuple(dict.fromkeys(found))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long a name
        return False


def _parameters(values: Mapping[str, Any], where: str) -> Profile:
    from mdl import parameters

    return parameters.profile(values, where)


def _place(name: str) -> str:
    """Where what is no field should stand, or what was meant."""
    from mdl import parameters

    known = parameters.find(name)
    return f"write it below [{known.kind}s]" if known else _nearest(name, (*FIELDS, *_HEAD))


def _nearest(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
