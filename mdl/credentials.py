"""Who we are at a registry: what `mdl login`, podman and docker have stored. Knows no network.

All of them write the same kind of file (containers-auth.json(5)): `auths` with a user and a password for a
host or, as podman has it, for a part of one, and the names of programs that keep the secrets elsewhere.
"""

import base64
import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mdl.config import auth_paths
from mdl.errors import DiskError

HELPER_SECONDS = 10.0
LARGEST_FILE = 4 << 20
LARGEST_ANSWER = 1 << 20
DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # what docker calls its hub in files and to helpers
_ALIASES = {"index.docker.io": DOCKER_HUB, "registry-1.docker.io": DOCKER_HUB}
_NO_USER = "<token>"  # in place of a user, says that the password is an identity token


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password, or a token that stands for both. Never printed."""

    user: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    source: str = ""

    @property
    def basic(self) -> str:
        """The header of RFC 7617."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class Login(NamedTuple):
    """That we have credentials for a host (or a part of one), without them. `user` is None where only a
    program knows."""

    host: str
    user: str | None
    source: str


def find(
    host: str, path: str = "", troubles: list[str] | None = None, patience: float = HELPER_SECONDS
) -> Credentials | None:
    """The credentials for a repository, from the first file that has some.

    A file that cannot be read or a program that fails is no reason to stop: most of what there is to fetch is
    public. What went wrong is added to `troubles`. `patience` is how many seconds a program has.
    """
    troubles = [] if troubles is None else troubles
    for file in auth_paths():
        content = _read(file, troubles)
        found = _from_helper(content, host, file, troubles, patience) or _from_auths(
            content, host, path, file
        )
        if found:
            return found
    return None


def logins() -> list[Login]:
    """All hosts for which there are credentials, those that are used first."""
    found: dict[str, Login] = {}
    for file in auth_paths():
        content = _read(file, [])
        for key, entry in _table(content, "auths").items():
            if credentials := _decoded(entry, file):
                host = _host_of(key)
                found.setdefault(host, Login(host, credentials.user or _NO_USER, str(file)))
        for key, helper in _table(content, "credHelpers").items():
            found.setdefault(_host_of(key), Login(_host_of(key), None, f"docker-credential-{helper}"))
    return list(found.values())


def store(host: str, credentials: Credentials) -> Path:
    """Keep credentials in mdl's own file, which only its owner may read. Raises DiskError."""
    pair = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    with _own_file() as (content, file):
        content.setdefault("auths", {})[host] = {"auth": pair}
    return file


def remove(host: str) -> bool:
    """Forget the credentials for a host; whether there were some in mdl's own file. Raises DiskError."""
    with _own_file() as (content, _):
        return content.get("auths", {}).pop(host, None) is not None


@contextlib.contextmanager
def _own_file() -> Iterator[tuple[dict[str, Any], Path]]:
    """The content of mdl's own file, which takes its place in one step when it was changed. One that is
    damaged stays: what is in it may still be of use to a person."""
    file = auth_paths()[0]
    troubles: list[str] = []
    content = dict(_read(file, troubles))
    if troubles:
        raise DiskError(troubles[0], hint="mend it, or move it away")
    content["auths"] = dict(_table(content, "auths"))
    before = json.dumps(content)
    yield content, file
    if json.dumps(content) != before:
        _replace(file, json.dumps(content, indent=2))


def _replace(file: Path, text: str) -> None:
    """Put a text into a file that only its owner may read, in one step. Raises DiskError."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=file.parent, prefix="auth.")  # 0600
        try:
            with os.fdopen(handle, "w") as opened:
                opened.write(text)
                opened.flush()
                os.fsync(opened.fileno())
            Path(beside).replace(file.resolve())  # which may be a link to where somebody keeps such files
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DiskError(f"{file} cannot be written: {error.strerror}", hint="check its permissions") from None


def _read(file: Path, troubles: list[str]) -> Mapping[str, Any]:
    try:
        with file.open("rb") as opened:
            content = json.loads(opened.read(LARGEST_FILE + 1)[:LARGEST_FILE])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        troubles.append(f"{file} cannot be read ({type(error).__name__})")
        return {}
    if not isinstance(content, dict):
        troubles.append(f"{file} holds no credentials")
        return {}
    return content


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _from_auths(content: Mapping[str, Any], host: str, path: str, file: Path) -> Credentials | None:
    """Of the entries for a host and for parts of it, that for the longest part that leads to the path."""
    entries = {
        _host_of(key): credentials
        for key, entry in _table(content, "auths").items()
        if (credentials := _decoded(entry, file))
    }
    parts = f"{host}/{path}".rstrip("/").split("/")
    names = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((entries[name] for name in names if name in entries), None)


def _host_of(key: str) -> str:
    """quay.io/org of `quay.io/org`, docker.io of `https://index.docker.io/v1/`."""
    key = re.sub(r"^https?://", "", str(key)).rstrip("/")
    key = re.sub(r"/v[12]$", "", key)
    host, slash, path = key.partition("/")
    return _ALIASES.get(host, host) + slash + path


def _decoded(entry: Any, file: Path) -> Credentials | None:
    """The credentials of an entry; None where it has none, as docker leaves it when a program keeps them."""
    if not isinstance(entry, dict):
        return None
    token = entry.get("identitytoken") or ""
    try:
        pair = base64.b64decode(entry.get("auth") or "", validate=True).decode()
    except (ValueError, TypeError):
        return None
    user, _, password = pair.partition(":")
    user, password = entry.get("username") or user, entry.get("password") or password.rstrip("\0")
    return _checked(user, password, token, str(file))


def _checked(user: Any, password: Any, token: Any, source: str) -> Credentials | None:
    if not all(isinstance(part, str) for part in (user, password, token)):
        return None
    if user == _NO_USER:
        user, password, token = "", "", password
    return Credentials(user, password, token, source) if token or (user and password) else None


def _from_helper(
    content: Mapping[str, Any], host: str, file: Path, troubles: list[str], patience: float
) -> Credentials | None:
    named = {_host_of(key): name for key, name in _table(content, "credHelpers").items()}
    helper = named.get(host) or content.get("credsStore")
    if not helper:
        return None
    if not isinstance(helper, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", helper):
        troubles.append(f"{file} names a credential helper that cannot be one")
        return None
    answer = _ask_helper(f"docker-credential-{helper}", host, troubles, patience)
    return _checked(answer.get("Username"), answer.get("Secret"), "", f"docker-credential-{helper}")


def _ask_helper(program: str, host: str, troubles: list[str], patience: float) -> Mapping[str, Any]:
    """What a program says of a host; nothing where it knows none.

    https://github.com/docker/docker-credential-helpers
    """
    asked = DOCKER_HUB_KEY if host == DOCKER_HUB else host
    try:
        code, said = _run([program, "get"], asked.encode(), patience)
    except FileNotFoundError:
        troubles.append(f"{program} is not there")
        return {}
    except TimeoutError:
        troubles.append(f"{program} did not answer within {patience:g} s")
        return {}
    except OSError as error:
        troubles.append(f"{program} cannot be run ({error.strerror})")
        return {}
    return _helped(program, code, said, troubles)


def _run(command: list[str], asked: bytes, patience: float) -> tuple[int, bytes]:
    """How a program ended, and the beginning of what it said. Raises TimeoutError, OSError.

    It writes to a file: a pipe would stay open for as long as something that it started holds it.
    """
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
        question.write(asked)
        question.seek(0)
        deadline = time.monotonic() + patience
        process = subprocess.Popen(command, stdin=question, stdout=answer, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and os.fstat(answer.fileno()).st_size <= LARGEST_ANSWER:
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
        answer.seek(0)
        return process.returncode, answer.read(LARGEST_ANSWER + 1)


def _helped(program: str, code: int, said: bytes, troubles: list[str]) -> Mapping[str, Any]:
    if len(said) > LARGEST_ANSWER:
        troubles.append(f"{program} said too much")
        return {}
    if code != 0:
        if b"not found" not in said:  # the words for a host that it does not know
            troubles.append(f"{program} failed ({code})")
        return {}
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        troubles.append(f"{program} said what cannot be understood")
        return {}
    return found
