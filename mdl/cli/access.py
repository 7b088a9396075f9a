"""Commands about who we are elsewhere: login, logout."""

import sys
from typing import Annotated

import typer

from mdl import ui
from mdl.cli.options import Authorities, Insecure, Json
from mdl.errors import NotFound, UsageError
from mdl.reference import HOST_ALIASES, HUGGING_FACE, is_host, show

LONGEST = 1 << 16  # bytes of a password or token

Host = Annotated[
    str | None, typer.Argument(metavar="HOST", help="A registry such as quay.io, or huggingface.co.")
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
    """Keep credentials for a registry or Hugging Face, if they are right. Without HOST, list them."""
    from mdl import config

    if host is None:
        return _show_logins(json=json)
    name = _host(host)
    settings = config.with_flags(config.load(), ca=ca)
    if name == HUGGING_FACE:
        from mdl.transports.huggingface import keep_token

        known = keep_token(_password("Token: ", from_pipe=password_stdin), settings)
        return ui.talk(f"logged in at {name} as {known}")
    from mdl.credentials import Credentials, store
    from mdl.transports.registry import check

    if insecure:
        settings = config.with_flags(settings, insecure=(*settings.insecure, name))
    user = user or _asked("User: ", from_pipe=password_stdin)
    credentials = Credentials(user, _password("Password: ", from_pipe=password_stdin))
    check(name, credentials, settings)
    file = store(name, credentials)
    return ui.talk(f"logged in at {name} as {user}; kept in {file}")


def logout(host: Annotated[str, typer.Argument(metavar="HOST", help="Where.")]) -> None:
    """Forget the credentials for a registry or Hugging Face."""
    from mdl import credentials

    name = _host(host)
    if name == HUGGING_FACE:
        from mdl.transports.huggingface import forget_token

        gone = forget_token()
    else:
        gone = credentials.remove(name)
    if not gone:
        others = [login.source for login in credentials.logins() if login.host == name]
        hint = f"{others[0]} has some, which mdl leaves alone" if others else "mdl login lists where you are"
        raise NotFound(f"mdl keeps no credentials for {name}", hint=hint)
    ui.talk(f"logged out of {name}")


def _show_logins(*, json: bool) -> None:
    from mdl.credentials import logins

    found = logins()
    if json:
        ui.show_json({"logins": [login._asdict() for login in found]})
    elif found:
        ui.table(("HOST", "USER", "SOURCE"), found)
    else:
        ui.talk("no credentials yet: mdl login HOST")


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
    if from_pipe:
        secret = sys.stdin.read(LONGEST).rstrip("\r\n")
    elif ui.is_interactive():
        import getpass

        secret = getpass.getpass(question, stream=sys.stderr)
    else:
        raise UsageError("nobody is here to ask for the password", hint="pipe it in with --password-stdin")
    if not secret or not secret.isprintable():
        raise UsageError("the password is empty, or has characters that none can have", hint="try again")
    return secret
