"""A conversation as a record, and the file that keeps it. Knows no engine and no terminal."""

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mdl.chat import Options, setting
from mdl.config import data_path
from mdl.engine.request import Chat, Message, Sampling
from mdl.errors import DiskError, IntegrityError, MdlError, NotFound, UsageError
from mdl.profiles import Profile

SCHEMA = 1
LARGEST = 64_000_000  # bytes of a session file that is read

_NAME = re.compile(r"[^\W_][\w .-]{0,59}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, on Windows
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation: what was said and how it is answered. `name` is that of its file, "" if it has none."""

    model: str = ""
    system: str = ""
    messages: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool | None = None
    name: str = ""

    def chat(self, *questions: Message) -> Chat:
        """What an engine is asked."""
        system = (Message("system", self.system),) if self.system else ()
        return Chat((*system, *self.messages, *questions), self.sampling, thinking=self.thinking)

    def plus(self, *messages: Message) -> "Session":
        return replace(self, messages=(*self.messages, *messages))

    def moved(self, model: str, old: Profile, new: Profile) -> "Session":
        """The conversation with another model: what is as the old one has it becomes what the new one has."""
        before, after = fresh(old), fresh(new)
        was, will = asdict(before.sampling), asdict(after.sampling)
        same = {name: will[name] for name, value in asdict(self.sampling).items() if value == was[name]}
        return replace(
            self,
            model=model,
            system=after.system if self.system == before.system else self.system,
            sampling=replace(self.sampling, **same),
        )

    def undone(self) -> "tuple[Session, str]":
        """The conversation before its last question, and that question. Raises UsageError without one."""
        for place in reversed(range(len(self.messages))):
            if self.messages[place].role == "user":
                return replace(self, messages=self.messages[:place]), self.messages[place].content
        raise UsageError("nothing has been said yet")


def begin(options: Options) -> Session:
    """The conversation to go on with: the kept one if there is one, else one as the model's profile has it;
    with what the options ask for.

    Raises UsageError for values out of range and for names that cannot be, and what `load` raises.
    """
    session = fresh(options.profile)
    if options.session is not None:
        session = replace(session, name=checked(options.session))
        with suppress(NotFound):
            session = load(options.session)
    return replace(
        session,
        model=options.model,
        system=session.system if options.system is None else options.system,
        sampling=replace(session.sampling, **options.sampling),
        thinking=session.thinking if options.thinking is None else options.thinking,
    )


def fresh(profile: Profile) -> Session:
    """A conversation in which nothing was asked for yet."""
    return Session(
        system=profile.system or "", messages=profile.messages, sampling=Sampling(**profile.sampling)
    )


def checked(name: str) -> str:
    """A name that is safe as a file's on every system. Raises UsageError for others."""
    if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name.endswith((" ", ".")):
        raise UsageError(
            f"{name!r:.80} cannot be the name of a session",
            hint="letters, digits, dots, dashes, underscores and spaces; at most 60",
        )
    return name


def names() -> list[str]:
    """The sessions that are kept."""
    try:
        return sorted(path.stem for path in _folder().iterdir() if path.suffix == ".json")
    except OSError:
        return []


def save(session: Session) -> None:
    """Writes the whole file, for its owner only, in one step. Raises DiskError."""
    path = _path(session.name)
    from datetime import UTC, datetime

    document = {
        "schema": SCHEMA,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": session.model,
        "system": session.system,
        "thinking": session.thinking,
        "sampling": {name: getattr(session.sampling, name) for name in setting.NAMES},
        "messages": [_packed(message) for message in session.messages],
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, json.dumps(document, ensure_ascii=False, indent=1))
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written: {error.strerror}", hint="MDL_DATA_HOME names another folder"
        ) from None


def load(name: str) -> Session:
    """Raises NotFound, DiskError, and IntegrityError for a file that is no session."""
    path = _path(name)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        known = ", ".join(names()[:20])
        hint = f"there are: {known}" if known else "/save NAME keeps a conversation"
        raise NotFound(f"no session is called {name}", hint=hint) from None
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from None
    try:
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        return replace(_session(json.loads(data)), name=name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MdlError) as error:
        cause = error.message if isinstance(error, MdlError) else _cause(error)
        raise IntegrityError(f"{path} is no session: {cause}", hint="mend it, or remove it") from None


def _folder() -> Path:
    return data_path() / "sessions"


def _path(name: str) -> Path:
    return _folder() / f"{checked(name)}.json"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _packed(message: Message) -> dict[str, str]:
    packed = {"role": message.role, "content": message.content}
    return {**packed, "reasoning": message.reasoning} if message.reasoning else packed


def _session(document: Any) -> Session:
    """The record that a document is. Raises what a wrong one makes Python raise."""
    if not isinstance(document, dict):
        raise TypeError("it holds no object")
    if document["schema"] != SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r:.20}, this mdl knows {SCHEMA}")
    thinking = document.get("thinking")
    if thinking not in (True, False, None):
        raise TypeError(f"thinking is {thinking!r:.20}")
    sampling = dict(document.get("sampling", {}))
    sampling |= {name: tuple(sampling[name]) for name in setting.TEXTS if name in sampling}
    return Session(
        model=_text(document.get("model", "")),
        system=_text(document.get("system", "")),
        messages=tuple(map(_message, document["messages"])),
        sampling=Sampling(**sampling),
        thinking=thinking,
    )


def _message(packed: Any) -> Message:
    if packed["role"] not in _ROLES:
        raise ValueError(f"a message has the role {packed['role']!r:.40}")
    return Message(packed["role"], _text(packed["content"]), _text(packed.get("reasoning", "")))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {value!r:.40}")
    return value


def _cause(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"it is not valid JSON: {error}"
    return " ".join(str(error).split())[:200]
