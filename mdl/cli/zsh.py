"""Completion for zsh, by its function `_arguments`."""

from mdl.cli.completion import ASKED, Argument, Command, Option

COMPLETERS: dict[str, str] = {
    **{kind: f"_mdl_{kind}" for kind in ASKED},
    "folder": "_path_files -/",
    "file": "_files",
}
ACTIONS: dict[str, str] = {
    **{kind: f":{kind}:{completer}" for kind, completer in COMPLETERS.items()},
    "text": ":value: ",
}


def script(commands: list[Command]) -> str:
    """The script; every command is a call of `_arguments`."""
    main, *others = commands
    names = "".join(f"        {_quote(f'{command.name}:{command.help}')}\n" for command in others)
    specs = "".join(f"        {_option(option)} \\\n" for option in main.options)
    after = "".join(map(_after, others))
    cases = "".join(map(_case, others))
    asked = "".join(
        f'_mdl_{kind}() {{\n    _mdl_ask {kind} "$@"\n}}\n\n' for kind in ASKED if kind != "model"
    )
    return _SCRIPT.format(names=names, main=specs, cases=cases, after=after, asked=asked)


def _case(command: Command) -> str:
    specs = [_option(option) for option in command.options] + _arguments(command)
    lines = " \\\n                ".join(["_arguments", *specs])
    return f"""\
        ({"|".join((command.name, *command.aliases))})
            {lines}
            ;;
"""


def _arguments(command: Command) -> list[str]:
    specs = [
        _quote(("*" if each.repeats else str(number)) + _action(each.kind, each.words))
        for number, each in enumerate(command.arguments, 1)
    ]
    if command.actions:
        return [*specs, _quote(f"*:value:{{_mdl_after {command.name}}}")]
    return specs if not specs or specs[-1].startswith("'*") else [*specs, "'*:value: '"]


def _after(command: Command) -> str:
    """A case for each argument that follows an action and can be completed."""
    return "".join(
        f"        ('{command.name} {action} '{_number(number, argument)}) {COMPLETERS[argument.kind]} ;;\n"
        for action, arguments in command.actions.items()
        for number, argument in enumerate(arguments, 1)
        if argument.kind in COMPLETERS
    )


def _number(number: int, argument: Argument) -> str:
    """As a pattern."""
    return f"<{number}->" if argument.repeats else str(number)


def _option(option: Option) -> str:
    """A specification: what it excludes, its names, its help and what it takes."""
    takes = bool(option.kind)
    names = [name + ("=" if name.startswith("--") else "+") * takes for name in option.names]
    before = "*" if option.repeats else f"({' '.join(option.names)})" * (len(names) > 1)
    help_text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    after = _quote(f"[{help_text}]{_action(option.kind, option.words)}")
    quoted = _quote(before) if before else ""
    return quoted + (names[0] if len(names) == 1 else "{" + ",".join(names) + "}") + after


def _action(kind: str, words: tuple[str, ...]) -> str:
    return f":value:({' '.join(words)})" if words else ACTIONS.get(kind, "")


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_SCRIPT = r"""#compdef mdl
# Completion of mdl for zsh, printed by `mdl completion zsh`.

# What mdl knows of the kind $1.
_mdl_ask() {{
    local kind=$1
    local -a names
    shift
    names=(${{(f)"$(_call_program $kind mdl __complete $kind ${{(q)${{(Q)PREFIX}}}} 2>/dev/null)"}})
    compadd "$@" -a names
}}

{asked}# A name that mdl knows, or a path.
_mdl_model() {{
    if [[ $PREFIX != (/|./|../|\~)* ]]; then
        _mdl_ask model "$@" && return
    fi
    _files
}}

# What follows the action of the command $1, as in "config set".
_mdl_after() {{
    local -a given=(${{words[2,CURRENT-1]:#-*}})
    case "$1 $given[1] $#given" in
{after}    esac
}}

_mdl_commands() {{
    local -a commands=(
{names}    )
    _describe command commands
}}

_mdl() {{
    local curcontext=$curcontext state line
    typeset -A opt_args
    _arguments -C \
{main}        '1:command:_mdl_commands' \
        '*::argument:->arguments' && return
    case $line[1] in
{cases}    esac
}}

if [[ $funcstack[1] == _mdl ]]; then
    _mdl "$@"
else
    compdef _mdl mdl
fi
"""
