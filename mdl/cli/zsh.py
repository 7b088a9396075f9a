"""Completion for zsh, by its function `_arguments`."""

from mdl.cli.completion import Command, Option

ACTIONS = {
    "model": ":model:_mdl_models",
    "folder": ":folder:_path_files -/",
    "file": ":file:_files",
    "text": ":value: ",
}


def script(commands: list[Command]) -> str:
    """The script; every command is a call of `_arguments`."""
    main, *others = commands
    names = "".join(f"        {_quote(f'{command.name}:{command.help}')}\n" for command in others)
    specs = "".join(f"        {_option(option)} \\\n" for option in main.options)
    return _SCRIPT.format(names=names, main=specs, cases="".join(map(_case, others)))


def _case(command: Command) -> str:
    specs = [_option(option) for option in command.options] + _arguments(command)
    lines = " \\\n                ".join(["_arguments", *specs])
    return f"""\
        ({"|".join((command.name, *command.aliases))})
            {lines}
            ;;
"""


def _arguments(command: Command) -> list[str]:
    action = _action(command.argument, command.words)
    if not action:
        return []
    return [_quote("*" + action)] if command.repeats else [_quote("1" + action), "'*:value: '"]


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

# A name that mdl knows, or a path.
_mdl_models() {{
    local -a names
    if [[ $PREFIX != (/|./|../|\~)* ]]; then
        names=(${{(f)"$(_call_program models mdl __complete model ${{(q)${{(Q)PREFIX}}}} 2>/dev/null)"}})
        compadd "$@" -a names && return
    fi
    _files
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
