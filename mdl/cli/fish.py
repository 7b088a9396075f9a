"""Completion for fish."""

from mdl.cli.completion import ASKED, Argument, Command, Option

TAKES: dict[str, str] = {
    "": "",
    **{kind: f" -x -a '(__mdl_ask {kind})'" for kind in ASKED},
    "folder": " -x -a '(__fish_complete_directories)'",
    "file": " -r -F",
    "text": " -x",
}


def script(commands: list[Command]) -> str:
    """The script; every option is a call of `complete`."""
    main, *others = commands
    options = [option for command in commands for option in command.options if option.kind]
    valued = " ".join(dict.fromkeys(name for option in options for name in option.names))
    lines = [_option(option, "__mdl_expects_command") for option in main.options]
    lines += [
        f"complete -c mdl -n __mdl_expects_command -a {command.name} -d {_quote(command.help)}"
        for command in others
    ]
    for command in others:
        lines += ["", *_command(command)]
    return _SCRIPT.replace("VALUED", valued) + "\n".join(lines) + "\n"


def _command(command: Command) -> list[str]:
    condition = f"'__mdl_command_is {' '.join((command.name, *command.aliases))}'"
    lines = [_option(option, condition) for option in command.options]
    names = " ".join((command.name, *command.aliases))
    lines += _arguments(f"'__mdl_argument_is NUMBER {names}'", command.arguments)
    for action, arguments in command.actions.items():
        lines += _arguments(f"'__mdl_follows NUMBER {command.name} {action}'", arguments)
    return lines


def _arguments(condition: str, arguments: tuple[Argument, ...]) -> list[str]:
    """A line for each argument that can be completed. One that repeats is told as `3+`."""
    return [
        f"complete -c mdl -n {condition.replace('NUMBER', f'{number}' + '+' * each.repeats)}"
        + _takes(each.kind, each.words).removeprefix(" -x")
        for number, each in enumerate(arguments, 1)
        if each.kind != "text"
    ]


def _option(option: Option, condition: str) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    takes = _takes(option.kind, option.words)
    return f"complete -c mdl -n {condition} {' '.join(names)}{takes} -d {_quote(option.help)}"


def _takes(kind: str, words: tuple[str, ...]) -> str:
    return f" -x -a {_quote(' '.join(words))}" if words else TAKES[kind]


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPT = r"""# Completion of mdl for fish, printed by `mdl completion fish`.

# The words before the cursor that are neither options nor their values: a command and its arguments.
function __mdl_words
    set -l valued VALUED
    set -l words (commandline -opc)
    set -e words[1]
    set -l is_value no
    for word in $words
        if test $is_value = yes
            set is_value no
        else if string match -q -- '-*' $word
            contains -- $word $valued; and set is_value yes
        else
            printf '%s\n' $word
        end
    end
end

function __mdl_expects_command
    set -l words (__mdl_words)
    test (count $words) -eq 0
end

function __mdl_command_is
    set -l words (__mdl_words)
    set -q words[1]; and contains -- $words[1] $argv
end

# Whether argument $argv[1] (1+: this one or a later one) is next, after one of the commands that follow it.
function __mdl_argument_is
    set -l words (__mdl_words)
    set -q words[1]; and contains -- $words[1] $argv[2..]; and __mdl_is_number (count $words) $argv[1]
end

# The same after a command and its action, as in "config set".
function __mdl_follows
    set -l words (__mdl_words)
    test "$words[1..2]" = "$argv[2..3]"; and __mdl_is_number (math (count $words) - 1) $argv[1]
end

function __mdl_is_number
    set -l wanted (string replace + '' -- $argv[2])
    if string match -q -- '*+' $argv[2]
        test $argv[1] -ge $wanted
    else
        test $argv[1] -eq $wanted
    end
end

# The names of a kind that mdl knows; of models paths, too.
function __mdl_ask
    set -l typed (commandline -ct | string replace -r -- '^--?[a-z-]+=' '')
    if test $argv[1] = model; and string match -qr -- '^(/|\./|\.\./|~)' $typed
        complete -C "'' $typed" # as for a command that nothing is known of
    else
        mdl __complete $argv[1] "$typed" 2>/dev/null
    end
end

complete -c mdl -f
"""
