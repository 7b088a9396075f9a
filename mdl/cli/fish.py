"""Completion for fish."""

from mdl.cli.completion import Command, Option

TAKES = {
    "": "",
    "model": " -x -a '(__mdl_models)'",
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
    if command.argument not in ("", "text"):
        first = condition if command.repeats else f"{condition[:-1]}; and __mdl_expects_first_argument'"
        takes = _takes(command.argument, command.words).removeprefix(" -x")
        lines.append(f"complete -c mdl -n {first}{takes}")
    return lines


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

function __mdl_expects_first_argument
    set -l words (__mdl_words)
    test (count $words) -eq 1
end

# The names that mdl knows, or paths.
function __mdl_models
    set -l typed (commandline -ct | string replace -r -- '^--?[a-z-]+=' '')
    if string match -qr -- '^(/|\./|\.\./|~)' $typed
        complete -C "'' $typed" # as for a command that nothing is known of
    else
        mdl __complete model "$typed" 2>/dev/null
    end
end

complete -c mdl -f
"""
