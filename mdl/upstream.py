"""Models that others run and answer for over HTTP, by OpenAI's API or by Azure's form of it: where they are
asked, with which key, and what their errors mean. Knows no Chat, no event stream and no server of ours.

A key goes to the host that it is for, in a header, and nowhere else: no record prints it, what an API says is
searched for it before anybody sees that, and no redirect is followed with it.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from mdl import config, credentials
from mdl.address import Remote, is_loopback
from mdl.config import Settings
from mdl.connection import Trust
from mdl.credentials import Credentials
from mdl.errors import (
    OFFLINE,
    AuthError,
    MdlError,
    NetworkError,
    NotFound,
    TooLong,
    UnsupportedModel,
    UsageError,
)
from mdl.model import Model
from mdl.reference import Reference, show
from mdl.remote import PASSING, Client, Limits

OPENAI_HOST = "api.openai.com"
AZURE_HOSTS = ".openai.azure.com"
USER = "api-key"  # in place of a user's name: the password is the key of an API
LARGEST_ERROR = 1 << 20  # bytes
LONGEST_MESSAGE = 400  # characters of what an API says that are shown
SILENCE = 600.0  # seconds in which an API says nothing, while a model thinks; as OpenAI's own client has it
LIMITS = Limits(read_timeout=SILENCE, header_timeout=SILENCE, retries=3)
_KEY = r"[\x21-\x7e]{1,8192}"
_DATED = r"\d{4}-.*"
_ROUTE = r"(/chat/completions|/completions|/embeddings)?/*$"
_DEPLOYED = r"(?:(.*)/)?openai/deployments/([^/]+)"  # as Azure's portal tells the address of a deployment


class Key(NamedTuple):
    """A secret, or "", and where it was found."""

    secret: str = ""
    source: str = ""

    def __repr__(self) -> str:
        return f"Key(source={self.source!r})"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model at an API: the `address` that its routes come after, and what it is called there."""

    reference: Reference
    address: str
    model: str
    query: str = ""
    key: Key = field(default_factory=Key, repr=False)

    def url(self, route: str) -> str:
        """Of a route, such as chat/completions."""
        return f"{self.address}/{route}" + (f"?{self.query}" if self.query else "")

    @property
    def headers(self) -> dict[str, str]:
        """What proves who we are, for this host alone."""
        if not self.key.secret:
            return {}
        if self.reference.scheme == "azure":
            return {"api-key": self.key.secret}
        return {"Authorization": f"Bearer {self.key.secret}"}

    @property
    def login(self) -> str:
        """The command that keeps a key for it."""
        base = self.reference.api_parts[0]
        host = self.reference.host
        known = host == OPENAI_HOST or host.endswith(AZURE_HOSTS)
        return f"mdl login {host}" if known else f"mdl login {self.reference.scheme}://{host}/{base}"

    def without_key(self, text: str) -> str:
        """What an API says, should it repeat the key."""
        return text.replace(self.key.secret, "***") if self.key.secret else text


def of(model: Model, settings: Settings) -> Upstream:
    """Where a model of an API is asked, with the key that there is for it, if there is one.

    Raises UnsupportedModel for what is no such model, NotFound where mdl may not use the network, AuthError
    for a key that cannot be one.
    """
    if not model.is_api:
        raise UnsupportedModel(f"{model.reference} runs here, and not at an API")
    if settings.offline:
        raise NotFound(f"{model.reference} cannot be asked: mdl is offline", hint=OFFLINE)
    return at(reference_of(model), settings)


def reference_of(model: Model) -> Reference:
    """What a model is called at its API: its own name, or what its model.json says.

    Raises UsageError for an address that cannot be one, UnsupportedModel for a model.json without one.
    """
    if model.reference.is_api or model.card is None:
        return model.reference
    from mdl import modeljson

    card = modeljson.read(model.card)
    address, mark, query = card.source_url.partition("?")
    scheme, _, rest = re.sub(_ROUTE, "", address).partition("://")
    if scheme in ("openai", "azure"):
        return Reference.parse(card.source_url)
    host, _, base = rest.partition("/")
    name = str(card.metadata.get("model") or card.id or card.name)
    deployed = re.fullmatch(_DEPLOYED, base)
    if deployed:
        base, name = deployed[1] or "", deployed[2]
    if scheme not in ("http", "https") or not host or not name:
        hint = 'such as "source_url": "https://api.openai.com/v1" and "id": "gpt-4o"'
        raise UnsupportedModel(f"{model.card} does not say where its API is, or which model it means", hint)
    is_azure = deployed or "azure" in card.engine.lower() or host.lower().endswith(AZURE_HOSTS)
    return Reference.parse(f"{'azure' if is_azure else 'openai'}://{host}/{base}#{name}{mark}{query}")


def at(reference: Reference, settings: Settings, key: Key | None = None) -> Upstream:
    """The same of a reference."""
    base, name = reference.api_parts
    scheme = "http" if _is_plain(reference.host, settings) else "https"
    found = find_key(reference, secure=scheme == "https") if key is None else key
    if found.secret and not re.fullmatch(_KEY, found.secret):
        raise AuthError(f"the key from {found.source} holds what no key does", hint="set it again")
    place = f"{scheme}://{reference.host}"
    if reference.scheme == "azure":
        address, query = _azure(reference)
        return Upstream(reference, place + address, name, query, found)
    return Upstream(reference, place + (f"/{quote(base)}" if base else ""), name, key=found)


def _azure(reference: Reference) -> tuple[str, str]:
    """Path and query of Azure's API: by the deployment with a dated version, else as OpenAI has it.

    https://learn.microsoft.com/azure/ai-foundry/openai/reference, …/openai/api-version-lifecycle
    """
    base, name = reference.api_parts
    prefix = f"/{base}".removesuffix("/openai/v1").rstrip("/")
    query = f"api-version={reference.version}" if reference.version else ""
    if reference.version and re.fullmatch(_DATED, reference.version):
        return f"{quote(prefix)}/openai/deployments/{quote(name)}", query
    return f"{quote(prefix)}/openai/v1", query


def _is_plain(host: str, settings: Settings) -> bool:
    """Whether it is asked by http: on this machine, or where the user says so."""
    return host in settings.insecure or (is_loopback(host) and not settings.ca)


def trust(settings: Settings) -> Trust:
    return Trust(settings.ca, frozenset(settings.insecure))


# Keys


def find_key(reference: Reference, secure: bool = True) -> Key:
    """The key for a host, from the first place that has one for it: MDL_UPSTREAM_KEYS (HOST=KEY, separated by
    commas), the variable of OpenAI's or Azure's own clients for their hosts, what `mdl login` keeps."""
    host = reference.host
    for entry in config.variable("MDL_UPSTREAM_KEYS").split(","):
        name, _, secret = entry.strip().partition("=")
        if name.lower() == host and secret:
            return Key(secret, "MDL_UPSTREAM_KEYS")
    variable = _variable(host) if secure else ""
    if variable and (secret := config.variable(variable)):
        return Key(secret, variable)
    found = credentials.find(host, reference.api_parts[0])
    if found is None or not (found.identity_token or found.user == USER):
        return Key()  # a password for a registry is no key
    return Key(found.identity_token or found.password, found.source)


def _variable(host: str) -> str:
    if host == OPENAI_HOST:
        return "OPENAI_API_KEY"
    return "AZURE_OPENAI_API_KEY" if host.endswith(AZURE_HOSTS) else ""


def as_api(text: str) -> Reference | None:
    """The API that `mdl login` is given; None for anything else, such as a registry. Raises UsageError."""
    scheme, sign, rest = text.partition("://")
    if sign and scheme.lower() in ("openai", "azure"):
        return Reference.parse(f"{text.rstrip('/')}/any")
    host = (rest if sign else text).partition("/")[0].lower()
    if host == OPENAI_HOST:
        return Reference.parse(f"openai://{host}/v1/any")
    return Reference.parse(f"azure://{host}/any") if host.endswith(AZURE_HOSTS) else None


def keep_key(reference: Reference, secret: str, settings: Settings) -> str:
    """Keeps a key where `mdl login` keeps passwords, unless the API refuses it; where that is.

    Raises AuthError for a wrong one, NetworkError where nobody answers, DiskError.
    """
    upstream = at(reference, settings, Key(secret, "what was typed"))
    client = Client(LIMITS, trust=trust(settings))

    def ask() -> int:
        answer = client.ask(Remote(_models(upstream), upstream.headers), "GET")
        answer.close()
        if answer.status in PASSING:
            raise client.slowed(answer)
        return answer.status

    try:
        status = client.patiently(ask)
    finally:
        client.close()
    if status == 401:
        raise AuthError(f"{reference.host} refuses the key", hint="check it, and that it is for this host")
    return str(credentials.store(reference.host, Credentials(USER, secret)))


def _models(upstream: Upstream) -> str:
    """Where an API lists its models."""
    return upstream.url("models").replace(f"/deployments/{quote(upstream.model)}/", "/")


# Errors


def said(body: bytes) -> tuple[str, str]:
    """The message and the code of an API's error, as it wrote them; "" where it did not."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    error = content.get("error", content) if isinstance(content, dict) else None
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, dict):
        return "", ""
    message, code = (error.get(name) for name in ("message", "code"))
    return _text(message) or _text(error.get("detail")), _text(code)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def failure(upstream: Upstream, status: int, body: bytes) -> MdlError:
    """The error for an answer of an API that is none."""
    message, code = said(body)
    host = upstream.reference.host
    text = show(upstream.without_key(" ".join(message.split())), LONGEST_MESSAGE)[1:-1]
    told = f": {text}" if text else f" ({status})"
    if status in (401, 403):
        what = "refuses the key" if upstream.key.secret else "wants a key"
        return AuthError(f"{host} {what}{told}", hint=upstream.login)
    if status == 404:
        return NotFound(f"{host} has no {show(upstream.model)}{told}", hint="check the model's name there")
    if code == "context_length_exceeded":
        return TooLong(f"{host} says{told}", hint="send less")
    if status in (400, 413, 415, 422):
        return UsageError(f"{host} cannot take the request{told}")
    if 300 <= status < 400:
        return NetworkError(f"{host} sends elsewhere ({status}), which is not followed", "check the address")
    return NetworkError(f"{host} answered {status}{told if text else ''}", hint="try again later")
