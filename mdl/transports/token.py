"""Who we are to a registry: its challenge, our credentials, and the token that they get. Knows no artifacts.

https://distribution.github.io/distribution/spec/auth/token/. Tokens are for one repository and expire within
minutes; a download of hours renews its own. That one has expired is what the registry says by a 401, and not
what a clock says: `expires_in` counts from a moment that only its maker knows.
"""

import json
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from mdl.address import Remote, is_loopback, origin_of, shown
from mdl.credentials import Credentials, find
from mdl.errors import AuthError, NetworkError
from mdl.reference import DOCKER, show
from mdl.remote import Client
from mdl.response import Response

if TYPE_CHECKING:
    from mdl.config import Settings

# Registries whose tokens come from another host, which is theirs too. ghcr.io, quay.io and most others give
# their own. https://docs.docker.com/reference/api/registry/auth/, https://docs.gitlab.com/administration/packages/
# container_registry/ (the `realm` is that of the GitLab itself), https://github.com/NVIDIA/nvcf/pull/557
WIRE = {DOCKER: "registry-1.docker.io"}  # hosts whose API is somewhere else than their name says
REALMS: dict[str, tuple[str, ...]] = {
    "docker.io": ("auth.docker.io",),
    "registry.gitlab.com": ("gitlab.com",),
    "nvcr.io": ("authn.nvidia.com",),
}
LARGEST_ANSWER = 1 << 20
_PARAMETER = r'([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))'


class Session:
    """Our standing at one registry, for one repository, with the credentials that are given or found. Safe to
    use from several threads."""

    def __init__(
        self,
        host: str,
        path: str,
        settings: "Settings",
        client: Client,
        credentials: Credentials | None = None,
    ) -> None:
        self._host, self._path, self._settings, self._client = host, path, settings, client
        self._lock = threading.Lock()
        self._header = ""
        self._challenge: tuple[str, Mapping[str, str]] | None = None
        self._credentials = credentials
        self._looked = credentials is not None
        self.troubles: list[str] = []  # why credentials that we may have were not found

    @property
    def is_known(self) -> bool:
        """Whether the registry was told who we are."""
        return self._credentials is not None

    @property
    def was_asked(self) -> bool:
        """Whether the registry wanted to know."""
        return bool(self._header)

    def headers(self) -> Mapping[str, str]:
        with self._lock:
            return self._current()

    def renew(self, used: Mapping[str, str], challenge: str) -> Mapping[str, str] | None:
        with self._lock:
            if self._header and used.get("Authorization") != self._header:
                return self._current()  # somebody else has done it meanwhile
            # The way that has led to a token is taken again: nvcr.io sends those with an old token elsewhere
            # than those without one (https://github.com/NVIDIA/nvidia-container-toolkit/issues/1945).
            for scheme, parameters in [self._challenge] if self._challenge else challenges(challenge):
                if scheme in ("bearer", "basic") and self._enter(scheme, parameters):
                    return self._current() if self._header != used.get("Authorization") else None
            return None

    def _current(self) -> Mapping[str, str]:
        return {"Authorization": self._header} if self._header else {}

    def _enter(self, scheme: str, parameters: Mapping[str, str]) -> bool:
        """Get what the scheme asks for; False where we have nothing to show."""
        if not self._looked:
            self._credentials, self._looked = find(self._host, self._path, self.troubles), True
        if scheme == "basic":
            if self._credentials is None:
                return False
            self._header = self._credentials.basic
            return True
        self._header = f"Bearer {self._token(parameters)}"
        self._challenge = scheme, parameters
        return True

    def _token(self, parameters: Mapping[str, str]) -> str:
        realm = parameters.get("realm", "")
        credentials = self._credentials
        if not self._may_be_asked(realm):
            raise NetworkError(
                f"{self._host} sends on to {show(realm)} for a token, which is no safe address",
                hint="the registry or something before it is at fault",
            )
        if credentials and not self._may_know_us(realm):
            raise AuthError(
                f"{self._host} wants your password to go to {shown(realm)}, which mdl does not do",
                hint=f"if that is right, add {urlsplit(realm).netloc} to `realms` in config.toml",
            )
        fields = {"service": parameters.get("service", ""), "scope": self._scope(parameters)}
        answer = self._ask(realm, {name: value for name, value in fields.items() if value}, credentials)
        return self._read(answer, realm)

    def _ask(self, realm: str, fields: dict[str, str], credentials: Credentials | None) -> Response:
        if credentials and credentials.identity_token:
            body = {**fields, "grant_type": "refresh_token", "client_id": "mdl"}
            body["refresh_token"] = credentials.identity_token
            return self._client.post(Remote(realm), body, LARGEST_ANSWER)
        headers = {"Authorization": credentials.basic} if credentials else {}
        separator = "&" if "?" in realm else "?"
        return self._client.get(Remote(f"{realm}{separator}{urlencode(fields)}", headers), LARGEST_ANSWER)

    def _read(self, answer: Response, realm: str) -> str:
        if answer.status in (400, 401, 403) and not self._path:
            raise unknown(self._host)
        if answer.status in (400, 401, 403):
            raise AuthError(
                f"{shown(realm)} gives no token for {self._path or self._host} ({answer.status})",
                hint=f"check the spelling, and who you are there: mdl login {self._host}",
            )
        try:
            content: dict[str, Any] = json.loads(answer.body)
            token = content.get("token") or content.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if answer.status == 200 and isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]{1,65536}", token):
            return token
        raise NetworkError(f"{shown(realm)} answers, but gives no token ({answer.status})", "try again later")

    def _scope(self, parameters: Mapping[str, str]) -> str:
        """To read this repository, in the registry's words if it has any; never more."""
        scope = parameters.get("scope", "")
        if re.fullmatch(r"repository(\([a-z]+\))?:[^\s:]+(:\d+)?[^\s:]*:pull", scope):
            return scope
        return f"repository:{self._path}:pull" if self._path else ""

    def _may_be_asked(self, realm: str) -> bool:
        """Whether anything at all may be sent there. What runs on this machine is nobody else's to ask."""
        try:
            scheme, host, _ = origin_of(realm)
        except ValueError:
            return False
        if is_loopback(host):
            return is_loopback(self._host)
        return scheme == "https" or urlsplit(realm).netloc in self._settings.insecure

    def _may_know_us(self, realm: str) -> bool:
        """Whether our credentials may go to a realm: the registry's own host, one that is known to belong to
        it, or one that the user has listed."""
        host = origin_of(realm)[1]
        own = {name.rpartition(":")[0] or name for name in (self._host, WIRE.get(self._host, self._host))}
        listed = self._settings.realms
        return (
            host in own
            or host in REALMS.get(self._host, ())
            or host in listed
            or urlsplit(realm).netloc in listed
        )


def unknown(host: str) -> AuthError:
    """That credentials are wrong."""
    return AuthError(f"{host} does not know this user with this password", hint="check both")


def challenges(text: str) -> list[tuple[str, dict[str, str]]]:
    """The schemes of a WWW-Authenticate, in lower case, with their parameters (RFC 9110 11.6.1)."""
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while match := re.compile(rf"[\s,]*(?:{_PARAMETER}|([A-Za-z0-9_-]+)(?=\s|,|$))").match(
        text[:8192], position
    ):
        if match.end() == position:
            break
        position = match.end()
        if match[4]:
            found.append((match[4].lower(), {}))
        elif found:
            value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
            found[-1][1].setdefault(match[1].lower(), value)
    return found
