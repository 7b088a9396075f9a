"""Commands about who we are elsewhere: login, logout."""

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mdl import ui
from mdl.cli.options import Authorities, Insecure, Json
from mdl.errors import OFFLINE, AuthError, NotFound, UsageError
from mdl.reference import HOST_ALIASES, HUGGING_FACE, is_host, show

if TYPE_CHECKING:
    from mdl.credentials import Login
    from mdl.reference import Reference

LONGEST = 1 << 16  # characters of a password or token

Host = Annotated[
    str | None,
    typer.Argument(
        metavar="HOST", help="A registry such as quay.io, huggingface.co, or an API: openai://HOST/v1."
    ),
]


def login(
    host: Host = None,
    user: Annotated[str | None, typer.Option("--user", "-u", metavar="NAME", help="Your name there.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password or token from a pipe.")
    ] = False,
    insecure: Insecure = False,
    ca: Authorities = None,
    json: Json = False,
) -> None:
    """Keep credentials for a registry, Hugging Face or an API. They are tried first.

    \b
    mdl login                                all that are kept
    mdl login quay.io --user NAME            a registry, which asks for a password
    mdl login huggingface.co                 a token, typed or by --password-stdin
    mdl login api.openai.com                 a key; so of NAME.openai.azure.com
    mdl login openai://openrouter.ai/api/v1  the key of any other API
    """
    from mdl import config

    if host is None:
        return _show_logins(json=json)
    api = _api(host)
    name = api.host if api else _host(host)
    settings = config.with_flags(config.load(), ca=ca)
    if insecure:
        settings = config.with_flags(settings, insecure=(*settings.insecure, name))
    if settings.offline:
        raise NotFound(f"{name} cannot be asked who you are: mdl is offline", hint=OFFLINE)
    if user and (api or name == HUGGING_FACE):
        raise UsageError(f"{name} has no users but whose key it is", hint="leave out --user")
    if api:
        from mdl.cli.apis import log_in

        return log_in(api, _password("Key: ", from_pipe=password_stdin), settings)
    if name == HUGGING_FACE:
        from mdl.transports.huggingface import keep_token

        known = keep_token(_password("Token: ", from_pipe=password_stdin), settings)
        return ui.talk(f"logged in at {name} as {known}")
    from mdl.credentials import Credentials, store
    from mdl.transports.registry import check

    user = user or _asked("User: ", from_pipe=password_stdin)
    credentials = Credentials(user, _password("Password: ", from_pipe=password_stdin))
    check(name, credentials, settings)
    file = store(name, credentials)
    return ui.talk(f"logged in at {name} as {user}; kept in {file}")


def logout(host: Annotated[str, typer.Argument(metavar="HOST", help="Where.")]) -> None:
    """Forget the credentials for a registry, Hugging Face or an API.

    \b
    mdl logout quay.io   mdl login lists where you are
    """
    from mdl import credentials

    api = _api(host)
    name = api.host if api else _host(host)
    if name == HUGGING_FACE:
        from mdl.transports.huggingface import forget_token

        gone = forget_token()
    else:
        gone = credentials.remove(name)
    others = [login.source for login in _logins() if login.host == name]
    left = f"{others[0]} has some, which mdl leaves alone" if others else ""
    if not gone:
        raise NotFound(f"mdl keeps no credentials for {name}", hint=left or "mdl login lists where you are")
    ui.talk(f"logged out of {name}" + (f"; {left}" if left else ""))


def _show_logins(*, json: bool) -> None:
    found = _logins()
    if json:
        ui.show_json({"logins": [login._asdict() for login in found]})
    elif found:
        ui.table(("HOST", "USER", "SOURCE"), [(host, user or "-", source) for host, user, source in found])
    else:
        ui.talk("no credentials yet: mdl login HOST")


def _logins() -> "list[Login]":
    from mdl.credentials import Login, logins
    from mdl.transports.huggingface import token_source

    found = logins()
    with contextlib.suppress(AuthError):  # it cannot be read: whoever wants to use it is told
        if source := token_source():
            found.append(Login(HUGGING_FACE, None, source))
    return found


def _api(text: str) -> "Reference | None":
    from mdl.upstream import as_api

    return as_api(text)


def _host(text: str) -> str:
    """The canonical name of a host, or of the registry of a pasted address."""
    bare = text.removeprefix("https://").removeprefix("http://").strip("/").lower()
    name = HOST_ALIASES.get(bare, bare)
    if not is_host(name):
        raise UsageError(f"{show(text)} is not a host name", hint="such as quay.io or localhost:5000")
    return name


def _asked(question: str, *, from_pipe: bool) -> str:
    if from_pipe or not ui.is_interactive():
        raise UsageError("whose password is it?", hint="name the user with --user")
    ui.talk(question, end="")
    if not (answer := sys.stdin.readline().strip()):
        raise UsageError("no user was named", hint="mdl login HOST --user NAME")
    return answer


def _password(question: str, *, from_pipe: bool) -> str:
    """From a pipe, or from a person, who does not see it. Never from the command line, which all can read."""
    if not from_pipe and not ui.is_interactive():
        raise UsageError("nobody is here to ask for the password", hint="pipe it in with --password-stdin")
    secret = ""
    with contextlib.suppress(EOFError, UnicodeDecodeError):
        if from_pipe:
            secret = sys.stdin.read(LONGEST + 1).rstrip("\r\n")
        else:
            import getpass

            secret = getpass.getpass(question, stream=sys.stderr)
    if not secret or not secret.isprintable() or len(secret) > LONGEST:
        raise UsageError("this is no password: empty, too long, or not of one line", hint="try again")
    return secret
