"""How a model is named: parse, print, path. Pure: knows no disk, no network and no configuration.

    [scheme://][host/]path[:version][@pin]

A name is parsed once, here, and travels as a `Reference` afterwards. What a `Reference` holds is safe to put
in a path, a URL and a terminal, because it refuses everything else when it is made.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import quote, unquote

from mdl.errors import UsageError

HUGGING_FACE = "huggingface.co"
OLLAMA = "registry.ollama.ai"
DOCKER = "docker.io"
UNKNOWN_VERSION = "n/a"

Scheme = Literal["hf", "oci", "ollama", "https", "http", "file", "openai", "azure", "short"]

HOST_ALIASES = {
    "hf.co": HUGGING_FACE,
    "www.huggingface.co": HUGGING_FACE,
    "ollama.com": OLLAMA,
    "index.docker.io": DOCKER,
    "registry-1.docker.io": DOCKER,
}
PREFIXES: dict[str, Scheme] = {
    "hf": "hf",
    "huggingface": "hf",
    "oci": "oci",
    "docker": "oci",
    "ollama": "ollama",
    "https": "https",
    "http": "http",
    "file": "file",
    "openai": "openai",
    "azure": "azure",
}
APIS = ("openai", "azure")  # models that others run, and answer for over HTTP: there is nothing to download
ONE_VERSION = ("https", "http", "file")  # an address has no versions: what lies there is the latest
ONLY = "latest"
LONGEST = 2048  # characters of a whole reference
LONGEST_SEGMENT = 255  # bytes of a file name, on every file system that matters
_HOST = r"(?=.{1,253}(:|$))[a-z0-9]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)*(:\d{1,5})?"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_DIGEST = r"sha256:[0-9a-f]{64}"
_API_PART = r"[A-Za-z0-9_@~][A-Za-z0-9._+:@~,=-]*"  # of an API's path, or of what it calls a model
_API_VERSION = r"v\d+(alpha|beta)?\d*"
# https://learn.microsoft.com/azure/ai-services/openai/api-version-lifecycle
_AZURE_VERSION = r"\d{4}-\d{2}-\d{2}(-preview)?|preview|latest|v1"
# Patterns are text, so that only those that a command needs are compiled.
# Characters that every file system takes as they are. "@" stands between version and pin, "%" escapes.
_PLAIN = " !#$&'()+,-.;=[]^_`{}~"
_RESERVED = r"(?i)(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?"  # names that Windows keeps
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, BiDi marks, surrogates, unassigned


@dataclass(frozen=True, slots=True)
class Reference:
    """One name of one model, in canonical form.

    `path` has no leading slash, except for files, where it is the absolute path. `version` is None until it
    is known. `query` belongs to a URL's access and not to the name: it may hold a signature, so it is not
    printed, stored or compared.

    Of an API the `path` is that of its address and the model's name there, with a # between the two where
    they would be told apart otherwise. Azure's api-version is the `version`.
    """

    scheme: Scheme
    host: str
    path: str
    version: str | None = None
    pin: str | None = None
    query: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for part in (self.host, self.path, self.version or "", self.pin or ""):
            _refuse_invisible(part)
        if not is_host(self.host) and (self.host or self.scheme not in ("short", "file")):
            raise UsageError(f"{show(self.host)} is not a host name", hint=_HINT)
        _check_segments(self.path.removeprefix("/").split("/"), is_file=self.scheme == "file")
        for ending in (self.version, self.pin):
            if ending is not None:
                _check_segments(ending.split("/"))
        for part in self.path_parts():
            if len(part.encode()) > LONGEST_SEGMENT:
                raise UsageError(f"a part of the name is too long: {show(part)}", hint=_HINT)
        if self.is_api:
            _check_api(self)

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """The reference that a person, a script or a server wrote.

        Raises UsageError when it is malformed or tries to be something else than a name.
        """
        if len(text) > LONGEST:
            raise UsageError(f"the model's name is too long: {show(text)}", hint=_HINT)
        if text != text.strip() or not text:
            raise UsageError("the model's name is empty or has spaces around it", hint=_HINT)
        _refuse_invisible(text)
        if text.startswith("-"):
            raise UsageError(f"{show(text)} looks like an option, not like a model", hint=_HINT)
        scheme, separator, rest = text.partition("://")
        if not separator:
            return _parse_bare(text)
        kind = PREFIXES.get(scheme.lower())
        if kind is None:
            raise UsageError(f"unknown scheme {show(scheme)}://", hint=f"known: {', '.join(PREFIXES)}")
        return _PARSERS[kind](rest)

    def __str__(self) -> str:
        if self.scheme == "file":
            return "file://" + quote(self.path, safe="/" + _PLAIN)
        if self.scheme in ("https", "http"):
            return f"{self.scheme}://{self.host}/{quote(self.path, safe='/' + _PLAIN)}"
        text = f"{self.host}/{self.path}" if self.host else self.path
        if self.is_api:
            return f"{self.scheme}://{text}" + (f"?api-version={self.version}" if self.version else "")
        if self.scheme == "oci" and _is_weights_name(self.path):
            text = "oci://" + text  # bare, it would read as the address of a file
        if self.version is not None:
            text += f":{quote(self.version, safe='/:' + _PLAIN)}"
        return text if self.pin is None else f"{text}@{self.pin}"

    @property
    def name(self) -> str:
        """The last part of the path: what people call the model."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_api(self) -> bool:
        """Whether others run the model, and answer for it over HTTP."""
        return self.scheme in APIS

    @property
    def api_parts(self) -> tuple[str, str]:
        """Of an API: the path of its address, without slashes around it, and what it calls the model."""
        base, sign, model = self.path.partition("#")
        return (base.rstrip("/"), model) if sign else _api_parts(self.path)

    @property
    def model(self) -> "Reference":
        """The same model, whatever the version."""
        return replace(self, version=None, pin=None)

    def with_version(self, version: str | None, pin: str | None = None) -> "Reference":
        return replace(self, version=version, pin=pin)

    def path_parts(self) -> tuple[str, ...]:
        """Safe names of the folders below `models/`, the version's last if there is one."""
        host = {"http": f"http:{self.host}", "file": "file", "short": ""}.get(self.scheme, self.host)
        if self.is_api or (self.scheme == "oci" and _is_weights_name(self.path)):
            host = f"{self.scheme}:{self.host}"  # keeps apart what the scheme alone tells apart
        parts = [host] if host else []
        parts += self.path.strip("/").split("/")
        if self.version is not None or self.scheme in ONE_VERSION:
            parts.append(self.version or ONLY)
        folders = [_to_folder(part) for part in parts]
        if self.pin is not None and self.version is not None:
            folders[-1] += "@" + _to_folder(self.pin)
        return tuple(folders)

    @classmethod
    def from_path_parts(cls, parts: Iterable[str], *, versioned: bool) -> "Reference":
        """The reference whose `path_parts()` these are; raises UsageError when there is none."""
        names = list(parts)
        version = pin = None
        if versioned:
            folder, _, pinned = names.pop().partition("@")
            version, pin = unquote(folder), unquote(pinned) or None
        if not names:
            raise UsageError("a model lies in a folder of its own, with its name")
        host, *path = (unquote(name) for name in names)
        if not path:
            return cls("short", "", host, version, pin)
        if host == "file":
            return cls("file", "", "/" + "/".join(path))
        for marked in _MARKED:
            if host.startswith(f"{marked}:"):
                scheme, host = marked, host.removeprefix(f"{marked}:")
                break
        else:
            scheme = _scheme_of(host, path)
        if scheme in ONE_VERSION:
            version = pin = None
        return cls(scheme, host, "/".join(path), version, pin)


_MARKED: tuple[Scheme, ...] = (
    "http",
    "oci",
    "openai",
    "azure",
)  # schemes that a folder's name spells out where it has to
_HINT = "write it as host/org/name:version, for instance huggingface.co/Qwen/Qwen3-0.6B-GGUF:Q8_0"

_API_HINT = "write it as openai://HOST/v1/MODEL, for instance openai://api.openai.com/v1/gpt-4o"


def show(text: str, length: int = 60) -> str:
    """Text from outside, made inert and short enough for one line of a terminal."""
    inert = "".join(
        c if unicodedata.category(c) not in _INVISIBLE else f"\\u{ord(c):04x}" for c in text[:length]
    )
    return f"'{inert}…'" if len(text) > length else f"'{inert}'"


def is_host(text: str) -> bool:
    """Whether this is the name of a host, with or without a port, in canonical spelling."""
    return re.fullmatch(_HOST, text) is not None


def canonical_version(version: str) -> str:
    """Quantizations are upper case, however they were typed; everything else stays."""
    from mdl.filename import quantization_of

    found = quantization_of(f"{version}.gguf")
    same = found is not None and len(found) == len(version)
    return found if found and same else version


def _refuse_invisible(text: str) -> None:
    if not text.isascii() or not text.isprintable():
        for character in text:
            if unicodedata.category(character) in _INVISIBLE:
                raise UsageError(f"the model's name has an invisible character: {show(text)}", hint=_HINT)
    if "\\" in text:
        raise UsageError(f"the model's name has a backslash: {show(text)}", hint=_HINT)


def _check_segments(segments: list[str], *, is_file: bool = False) -> None:
    for segment in segments:
        odd = segment != segment.strip() or segment.startswith("-")  # files of the user's may be called so
        if segment in ("", ".", "..") or (odd and not is_file):
            raise UsageError(f"the model's name has a part that cannot be one: {show(segment)}", hint=_HINT)


def _parse_bare(text: str) -> Reference:
    first, slash, rest = text.partition("/")
    host = HOST_ALIASES.get(first.lower(), first.lower())
    if slash and _looks_like_host(first):
        if host == HUGGING_FACE:
            return _parse_hugging_face(rest)
        if host == OLLAMA:
            return _parse_ollama(text)
        if _is_weights_name(_split(rest)[0]):
            return _parse_url("https", f"{host}/{rest}")
        return _parse_oci(f"{host}/{rest}")
    path, version, pin = _split(text)
    segments = path.split("/")
    if slash and (len(segments) < 3 or version is None):
        return _parse_hugging_face(text)
    _check_name(*segments)  # a hub's models have two parts: more of them are short for what is here
    return Reference("short", "", path, version, pin)


def _looks_like_host(segment: str) -> bool:
    return "." in segment or ":" in segment or segment.lower() == "localhost"


def _is_weights_name(path: str) -> bool:
    return path.lower().endswith(".gguf")


def _scheme_of(host: str, path: list[str]) -> Scheme:
    if host == HUGGING_FACE:
        return "hf"
    if host == OLLAMA:
        return "ollama"
    return "https" if _is_weights_name(path[-1]) else "oci"


def _split(text: str) -> tuple[str, str | None, str | None]:
    """path, version and pin of `path[:version][@pin]`."""
    text, at, pin = text.partition("@")
    path, colon, version = text.partition(":")
    if (colon and not version) or (at and not pin):
        raise UsageError(f"nothing follows the ':' or '@' in {show(text + at)}", hint=_HINT)
    return path, unquote(version) if colon else None, pin if at else None


def _check_name(*segments: str) -> None:
    for segment in segments:
        if not re.fullmatch(_NAME, segment) or ".." in segment:
            raise UsageError(f"{show(segment)} cannot be part of a model's name", hint=_HINT)


def _parse_hugging_face(text: str) -> Reference:
    text = text.removeprefix(f"{HUGGING_FACE}/").removeprefix("hf.co/")
    path, version, pin = _split(text)
    segments = path.rstrip("/").split("/")
    name, rest = segments[:2], segments[2:]
    _check_name(*name)
    if rest and version is not None:
        raise UsageError(
            f"{show(text)} has two versions: {show('/'.join(rest))} and {show(version)}", hint=_HINT
        )
    if rest:
        version = unquote("/".join(rest))
    return _hugging_face("/".join(name), version, pin)


def _parse_hugging_face_page(path: str, query: str) -> Reference:
    """A pasted web address: org/name, …/tree/REV, …/blob/REV/file and …/resolve/REV/file."""
    segments = [unquote(segment) for segment in path.rstrip("/").split("/")]
    name, rest = segments[:2], segments[2:]
    _check_name(*name)
    view, *tail = rest or [""]
    if view not in ("", "tree", "blob", "raw", "resolve"):
        raise UsageError(f"{show(view)} is not a page of a model on {HUGGING_FACE}", hint=_HINT)
    pin, file = _revision_and_file(tail)
    quantization = re.search(r"show_file_info=([^&]+)", query)  # what the page of a GGUF file adds
    if quantization and not file:
        file = unquote(quantization[1])
    return _hugging_face("/".join(name), file or None, None if pin == "main" else pin or None)


def _hugging_face(path: str, version: str | None, pin: str | None) -> Reference:
    return Reference("hf", HUGGING_FACE, path, canonical_version(version) if version else version, pin)


def _revision_and_file(tail: list[str]) -> tuple[str, str]:
    if tail[:1] == ["refs"]:  # refs/pr/1, refs/convert/parquet
        return "/".join(tail[:3]), "/".join(tail[3:])
    return "".join(tail[:1]), "/".join(tail[1:])


def _parse_ollama(text: str) -> Reference:
    first, slash, rest = text.partition("/")
    if slash and HOST_ALIASES.get(first.lower(), first.lower()) == OLLAMA:
        text = rest
    path, version, pin = _split(text)
    segments = path.split("/")
    if len(segments) == 3 and version is None:
        version = segments.pop()
    if len(segments) == 1:
        segments.insert(0, "library")
    if len(segments) != 2:
        raise UsageError(
            f"{show(text)} is not a model of the Ollama registry", hint="write ollama://[user/]name[:tag]"
        )
    _check_name(*segments)
    _check_pin(pin)
    return Reference("ollama", OLLAMA, "/".join(segments), version, pin)


def _parse_oci(text: str) -> Reference:
    first, slash, rest = text.partition("/")
    if not slash or not _looks_like_host(first):
        raise UsageError(f"{show(text)} names no registry", hint="write oci://host/path:tag")
    path, version, pin = _split(rest)
    host = HOST_ALIASES.get(first.lower(), first.lower())
    segments = path.split("/")
    if host == DOCKER and len(segments) == 1:
        segments.insert(0, "library")
    _check_name(*segments)
    _check_pin(pin)
    return Reference("oci", host, "/".join(segments), version, pin)


def _check_pin(pin: str | None) -> None:
    if pin is not None and not re.fullmatch(_DIGEST, pin):
        raise UsageError(
            f"{show(pin)} is not a digest", hint="a registry is pinned by @sha256: and 64 hex digits"
        )


def _parse_url(scheme: Literal["https", "http"], rest: str) -> Reference:
    rest = rest.partition("#")[0]
    address, _, query = rest.partition("?")
    authority, _, path = address.partition("/")
    if "@" in authority:
        raise UsageError("the address holds a user name or password", hint="leave it out of the address")
    host = HOST_ALIASES.get(authority.lower(), authority.lower())
    if host == HUGGING_FACE:
        return _parse_hugging_face_page(path, query)
    if host == OLLAMA:
        return _parse_ollama(path)
    path = unquote(path)
    if not _is_weights_name(path):
        raise UsageError(
            f"{show(f'{scheme}://{address}')} is not the address of a GGUF file",
            hint="the address of a file ends in .gguf; a registry is written as oci://host/path:tag",
        )
    return Reference(scheme, host, path, query=query)


def _parse_file(rest: str) -> Reference:
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise UsageError(f"file://{show(host)} is another machine", hint="write file:///absolute/path")
    return Reference("file", "", "/" + unquote(path).rstrip("/"))


def _parse_api(scheme: Literal["openai", "azure"], rest: str) -> Reference:
    address, mark, query = rest.partition("?")
    name, _, version = query.partition("=")
    known = scheme == "azure" and name == "api-version" and version
    if mark and not known:  # it is not told what the query is: there may be a key in it
        hint = "write azure://HOST/DEPLOYMENT?api-version=…" if scheme == "azure" else "leave it out"
        raise UsageError("the address of the API has a query that means nothing here", hint)
    host, _, path = address.partition("/")
    if "@" in host:
        raise UsageError("the address holds a user name or password", hint="mdl login keeps keys")
    if not path:
        raise UsageError(f"{show(host)} is an API, but which of its models?", _API_HINT)
    reference = Reference(scheme, host.lower(), path.rstrip("/"), version or None)
    base, model = reference.api_parts
    plain = f"{base}/{model}" if base else model
    return replace(reference, path=plain) if _api_parts(plain) == (base, model) else reference


def _api_parts(path: str) -> tuple[str, str]:
    """The address ends in a version, v1, where it has one; else the model's name is the last part."""
    parts = path.split("/")
    versions = [at for at, part in enumerate(parts[:-1], 1) if re.fullmatch(_API_VERSION, part)]
    end = versions[-1] if versions else len(parts) - 1
    return "/".join(parts[:end]), "/".join(parts[end:])


def _check_api(reference: Reference) -> None:
    base, model = reference.api_parts
    for part in (*filter(None, base.split("/")), *model.split("/")):
        if not re.fullmatch(_API_PART, part):
            raise UsageError(f"{show(part)} cannot be part of a model's name at an API", hint=_API_HINT)
    if reference.pin or (reference.version and reference.scheme != "azure"):
        raise UsageError("a model of an API has no versions", hint=_API_HINT)
    if reference.version and not re.fullmatch(_AZURE_VERSION, reference.version):
        raise UsageError("the api-version is none of Azure's", "such as 2024-10-21; or leave it out")


_PARSERS: dict[Scheme, Callable[[str], Reference]] = {
    "hf": _parse_hugging_face,
    "oci": _parse_oci,
    "ollama": _parse_ollama,
    "https": lambda rest: _parse_url("https", rest),
    "http": lambda rest: _parse_url("http", rest),
    "file": _parse_file,
    "openai": lambda rest: _parse_api("openai", rest),
    "azure": lambda rest: _parse_api("azure", rest),
}


def _to_folder(part: str) -> str:
    """A file name for one part of a reference; `unquote` is its inverse."""
    name = quote(part, safe=_PLAIN)
    if name.startswith(".") or re.fullmatch(_RESERVED, name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    return f"{name[:-1]}%{ord(name[-1]):02X}" if name.endswith((".", " ")) else name
