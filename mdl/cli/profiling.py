"""The command `profile`: how models are used, by which names, and files of other tools that say so."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import Json, Offline, Quiet
from mdl.errors import MdlError, NotFound, UsageError
from mdl.reference import show as shown

if TYPE_CHECKING:
    from mdl.profiletext import Written

HEAD = ("PROFILE", "FROM", "NAMES", "FOR")
MOST_NAMES = 2  # that the list shows
EXAMPLE = """\
# What clients may call it; these names are in /v1/models, and work wherever a model is named.
names = ["gpt-4", "gpt-4o"]

# For which models it is. Under its names the first that is loaded, else the first that is on this machine.
#   demo, Qwen/Qwen3-0.6B-GGUF:Q8_0, */Qwen3-*   references; * stands for anything
#   ~/models/mine.gguf                            a path
#   sha256:HEX, sha256:HEX:BYTES                  a file's content, whatever it is called
#   template:sha256:HEX, template:TEXT            the chat template, by its hash or by what it has
#   architecture:qwen3                            what its header calls its kind
#   architecture:qwen3 & template:enable_thinking all of these
models = ["demo"]

# Over which API paths; without this line over all, and in mdl chat.
paths = ["/v1/chat/completions"]

system = "Answer in one sentence."
stop = ["###"]

# For models without a chat template; or chat_template, chat_template_file (Jinja).
# prefixes = { user = "User: ", assistant = "Assistant: " }
# completion_template = "Text: {{ prompt }}"
# adapters = ["run@latest=0.8"]  # LoRA, as --adapter takes them

[settings]      # when it is loaded: mdl inspect MODEL --settings has all
context = 2048

[parameters]    # for each answer
temperature = 0.7
"""


def profile(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ACTION] [NAME...]", help="list, show, new, check, import, refresh, reset."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="MODEL", help="new: for which model; may be repeated."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="new: what clients may call it; may be repeated."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="new: instructions for the model.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="new: a setting or parameter; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="new, import: replace what is there.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> int:
    """How models are used, and further names for them.

    \b
    mdl profile                        all of them, yours first
    mdl profile show NAME              one, as the file that it is
    mdl profile new                    an example with all that there is
    mdl profile new loud -m demo --name gpt-4 --system "Answer in uppercase."
    mdl profile check [NAME|FILE...]   whether they are right, and where not
    mdl profile import Modelfile       one of Ollama's; FILE.yaml of LocalAI's
    mdl profile refresh [ADDRESS]      newer ones than ship with mdl; profiles_url
    mdl profile reset                  those that ship with mdl again
    """
    action, *rest = words or ["list"]
    new = {"models": model, "names": name, "system": system, "values": set_}
    if action != "new" and any(new.values()):
        raise UsageError(f"mdl profile {shown(action)} takes no such option", hint="mdl profile new NAME …")
    actions: dict[str, Callable[[], int]] = {
        "list": lambda: _list(rest, json=json, quiet=quiet),
        "show": lambda: _show(rest, json=json),
        "new": lambda: _new(rest, new, force=force, json=json),
        "check": lambda: _check(rest, json=json),
        "import": lambda: _import(rest, force=force, json=json),
        "refresh": lambda: _refresh(rest, offline=offline, json=json),
        "reset": lambda: _reset(rest, json=json),
    }
    if action not in actions:
        raise UsageError(f"mdl profile does not know {shown(action)}", hint=", ".join(actions))
    return actions[action]()


def _list(rest: list[str], *, json: bool, quiet: bool) -> int:
    from mdl import profilefile

    shelf = profilefile.all_profiles()
    found = [written for written in shelf.written if not rest or written.title in rest]
    for failure in shelf.failures:
        ui.talk(f"left out: {failure.message}")
    if json:
        problems = [failure.message for failure in shelf.failures]
        ui.show_json({"profiles": [_document(written) for written in found], "problems": problems})
    elif quiet:
        for written in found:
            ui.out(written.title)
    elif found:
        ui.table(HEAD, [_row(written) for written in found], prose=True)
    else:
        ui.talk("no profiles yet: mdl profile new NAME --model MODEL --system TEXT")
    return 0


def _row(written: "Written") -> tuple[str, ...]:
    models = ", ".join(_short(condition.text) for condition in written.models) or "all models"
    paths = f" over {', '.join(written.paths)}" if written.paths else ""
    names = ", ".join(written.names[:MOST_NAMES]) or "-"
    more = len(written.names) - MOST_NAMES
    names += f" (+{more})" if more > 0 else ""
    return written.title, "mdl" if written.shipped else "you", names, models + paths


def _short(condition: str) -> str:
    """With twelve digits of a digest."""
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}(:[0-9]+)?", r"\1", condition)


def _document(written: "Written") -> dict[str, Any]:
    from mdl import profiles

    return {
        "title": written.title,
        "description": written.description or None,
        "shipped": written.shipped,
        "source": written.source,
        "names": list(written.names),
        "models": [condition.text for condition in written.models],
        "paths": list(written.paths),
        "template": written.profile.template,
        "completion_template": written.profile.completion_template,
        **profiles.as_document(written.profile),
    }


def _show(rest: list[str], *, json: bool) -> int:
    from mdl import profilefile
    from mdl.profiletext import as_text, load

    written = profilefile.find(_one(rest, "show"))
    if json:
        ui.show_json(_document(written))
    elif written.shipped:
        ui.talk(f"{written.title} ships with mdl: {written.description}")
        ui.out(ui.inert(as_text(written)), end="")
    else:
        path = Path(written.source.partition(", profile ")[0])
        ui.talk(str(path))
        ui.out(ui.inert(load(path)), end="")
    return 0


def _new(rest: list[str], new: dict[str, Any], *, force: bool, json: bool) -> int:
    """Without a name an example for people to begin with."""
    from mdl import profilefile
    from mdl.profiletext import text

    if not rest:
        if any(new.values()):
            raise UsageError("what is the profile called?", hint="mdl profile new NAME …")
        ui.out(EXAMPLE, end="")
        return 0
    fields = {name: new[name] for name in ("names", "models", "system") if new[name]}
    fields |= _values(new["values"] or [])
    content = text(fields, _signs(new["models"] or [])) if fields else EXAMPLE
    path = profilefile.save(_one(rest, "new"), content, force=force)
    return _written(path, json=json)


def _signs(names: list[str]) -> list[str]:
    """What `models` could hold as well, for those that are here, whatever their files are called."""
    from mdl import matching

    library = options.open_library(ask=False)
    found = ((name, library.resolver.found(name)) for name in names)
    return [f"{name} is {sign}" for name, model in found if model for sign in matching.signs(model)]


def _values(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE, as the tables of a profile have them."""
    from mdl.foreign import Foreign

    found = Foreign()
    for each in given:
        name, sign, value = each.partition("=")
        if not sign:
            raise UsageError(f"--set cannot be {shown(each)}", hint="--set temperature=0.7")
        found.set_strictly(name, value)
    return found.fields


def _import(rest: list[str], *, force: bool, json: bool) -> int:
    from mdl import foreign, profilefile
    from mdl.profiletext import load, text

    if not 1 <= len(rest) <= 2:
        raise UsageError("mdl profile import takes a file, and a name", "mdl profile import Modelfile")
    path = Path(rest[0]).expanduser()
    path = path / "Modelfile" if path.is_dir() else path
    try:
        found = foreign.read(load(path), path.name)
    except UsageError as failure:
        raise UsageError(f"{path}: {failure.message}", failure.hint) from None
    title = rest[1] if len(rest) > 1 else _title(path, found.fields)
    fields = foreign.beside(found.fields, path.parent)
    fields.setdefault("names", [title])
    saved = profilefile.save(title, text(fields, (f"from {path.name}", *found.notes)), force=force)
    for note in found.notes:
        ui.talk(ui.inert(note, one_line=True))
    return _written(saved, json=json, notes=found.notes)


def _title(path: Path, fields: dict[str, Any]) -> str:
    """As it is called there; a Modelfile has the name of its folder."""
    names = fields.get("names")
    title = str(names[0]) if names else path.absolute().parent.name if path.stem == "Modelfile" else path.stem
    return "".join(character if character.isalnum() or character in ".-_+" else "-" for character in title)


def _written(path: Path, *, json: bool, notes: list[str] | None = None) -> int:
    if json:
        ui.show_json({"path": str(path), "notes": notes or []})
    else:
        ui.out(str(path))
    return 0


def _check(rest: list[str], *, json: bool) -> int:
    """Each file of the user's, or those that are named; the exit code is that of the first that is broken."""
    from mdl import profilefile

    paths = [_path(text) for text in rest] if rest else profilefile.files()
    failures: list[tuple[Path, MdlError]] = []
    titles = []
    for path in paths:
        try:
            titles += [written.title for written in _checked(path)]
        except MdlError as failure:
            failures.append((path, failure))
    if json:
        problems = [{"path": str(path), "message": f.message, "hint": f.hint} for path, f in failures]
        ui.show_json({"checked": titles, "problems": problems})
    else:
        for _, broken in failures:
            ui.error(broken, json=False)
        none = "no profiles of your own yet: mdl profile new shows an example"
        ui.talk(f"{len(titles)} right, {len(failures)} broken" if paths else none)
    return failures[0][1].code if failures else 0


def _checked(path: Path) -> "list[Written]":
    from mdl.engine import template
    from mdl.profiletext import read

    found = read(path)
    for written in found:
        for source in (written.profile.template, written.profile.completion_template):
            if source is not None:
                try:
                    template.check(source)
                except MdlError as failure:
                    raise UsageError(f"{written.source}: {failure.message}", hint="mend it") from None
    return found


def _path(text: str) -> Path:
    """A file as it is written, or a profile of the user's by its title."""
    from mdl import profilefile

    path = Path(text).expanduser()
    if "/" in text or text.endswith(".toml") or path.is_file():
        return path
    path = profilefile.path_of(text)
    if not path.exists():
        raise NotFound(f"there is no profile {shown(text)} of yours", hint="mdl profile list")
    return path


def _refresh(rest: list[str], *, offline: bool, json: bool) -> int:
    from mdl import profilefile

    settings = options.open_library(offline=offline).settings
    address = rest[0] if len(rest) == 1 else "" if rest else settings.profiles_url
    if not address:
        raise UsageError("where are newer profiles?", "mdl profile refresh https://…, or set profiles_url")
    count = profilefile.refresh(address, settings)
    if json:
        ui.show_json({"path": str(profilefile.refreshed()), "profiles": count})
    else:
        ui.talk(f"{count} profiles; yours stay as they are")
    return 0


def _reset(rest: list[str], *, json: bool) -> int:
    from mdl import profilefile

    if rest:
        raise UsageError(f"mdl profile reset takes nothing more: {shown(rest[0])}")
    path = profilefile.refreshed()
    there = path.exists()
    path.unlink(missing_ok=True)
    if json:
        ui.show_json({"removed": str(path) if there else None})
    else:
        ui.talk("the profiles are those that ship with mdl" + ("" if there else ", as they were"))
    return 0


def _one(rest: list[str], action: str) -> str:
    if len(rest) != 1:
        raise UsageError(f"mdl profile {action} takes the name of one profile", hint="mdl profile list")
    return rest[0]
