"""Completion for bash, version 3.2 and later, with and without the package bash-completion."""

from mdl.cli.completion import ASKED, Argument, Command, Option

KINDS: dict[str, str] = {
    "folder": "DIR",
    "file": "FILE",
    "text": "TEXT",
    **{kind: f"@{kind}" for kind in ASKED},
}


def script(commands: list[Command]) -> str:
    """The script; every command is a case that tells its options."""
    main, *others = commands
    names = ",".join(command.name for command in others)
    cases = "".join(map(_case, others))
    after = "".join(map(_after, others))
    return _SCRIPT.format(names=names, main=_list(main.options), cases=cases, after=after)


def _case(command: Command) -> str:
    return f"""\
        {" | ".join((command.name, *command.aliases))})
            arguments='{_arguments(command.arguments)}'
            options='
{_list(command.options)}            '
            ;;
"""


def _after(command: Command) -> str:
    """A case for each action of a command that takes something."""
    return "".join(
        f"        '{command.name} {action}') arguments='TEXT {_arguments(arguments)}' ;;\n"
        for action, arguments in command.actions.items()
        if arguments
    )


def _arguments(arguments: tuple[Argument, ...]) -> str:
    return " ".join(_value(each.kind, each.words) + "..." * each.repeats for each in arguments)


def _list(options: tuple[Option, ...]) -> str:
    """A line for each option: its names, each with what it takes."""
    lines = []
    for option in options:
        value = _value(option.kind, option.words)
        lines.append(" ".join(f"{name}={value}" if value else name for name in option.names))
    return "".join(f"                {line}\n" for line in lines)


def _value(kind: str, words: tuple[str, ...]) -> str:
    return ",".join(words) if words else KINDS.get(kind, "")


_SCRIPT = r"""# Completion of mdl for bash, printed by `mdl completion bash`.

# What there is to know of a command: its options, each with what it takes after a "=" (DIR, FILE, TEXT, the
# words to choose from, or "@" and what to ask mdl for), and its arguments; the last one stands for all that
# follow if it ends in "...".
_mdl_about() {{
    case $1 in
        '')
            arguments='{names}'
            options='
{main}            '
            ;;
{cases}        *)
            arguments=TEXT...
            options=
            ;;
    esac
}}

# What the arguments are after the command and the action in $1, as in "config set".
_mdl_after() {{
    case $1 in
{after}    esac
}}

# What the argument at $position takes.
_mdl_argument() {{
    local each number=0 last=
    value=
    for each in $arguments; do
        ((number++ == position)) && value=${{each%...}}
        last=$each
    done
    [[ $position -ge $number && $last == *... ]] && value=${{last%...}}
}}

# The words before the cursor, and what is typed of the one at it. Bash has split them at ":", "=" and "@".
_mdl_split() {{
    local index rest=${{COMP_LINE:0:COMP_POINT}} word
    words=()
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${{COMP_WORDS[index]}}
        if ((index == 0)) || [[ $rest == [[:space:]]* ]]; then
            words+=('')
        fi
        rest=${{rest#"${{rest%%[![:space:]]*}}"}}
        ((index == COMP_CWORD)) && word=$rest
        words[${{#words[@]}} - 1]+=$word
        rest=${{rest#"$word"}}
    done
    typed=${{words[${{#words[@]}} - 1]}}
    unset "words[${{#words[@]}} - 1]"
}}

# What the option $1 takes.
_mdl_value() {{
    local entry
    value=
    for entry in $options; do
        [[ $entry == "$1="* ]] && value=${{entry#*=}}
    done
}}

# Offer those of the words in $1 that begin as typed. Readline leaves alone what stands before a break.
_mdl_reply() {{
    local breaks=${{COMP_WORDBREAKS//[^:=@]/}} kept= begin=$typed word
    if [[ $typed == [\"\']* ]]; then
        begin=${{typed:1}}
    elif [[ -n $breaks ]]; then
        kept=${{typed%"${{typed##*[$breaks]}}"}}
    fi
    for word in $1; do
        [[ $word == "$begin"* ]] && COMPREPLY+=("${{word#"$kept"}}")
    done
}}

# Offer values of the kind $2, each after $1. Where nothing is offered, bash completes the names of files.
_mdl_offer() {{
    local begin=${{typed#"$1"}} words=
    case $2 in
        @*)
            begin=${{begin#[\"\']}}
            if [[ $2 != @model ]]; then
                compopt +o default 2>/dev/null
            elif [[ $begin == [/~]* || $begin == ./* || $begin == ../* ]]; then
                return
            fi
            words=$(mdl __complete "${{2#@}}" "$begin" 2>/dev/null)
            ;;
        FILE)
            return
            ;;
        DIR)
            compopt +o default -o dirnames 2>/dev/null
            return
            ;;
        TEXT | '')
            compopt +o default 2>/dev/null
            return
            ;;
        *)
            compopt +o default 2>/dev/null
            words=${{2//,/ }}
            ;;
    esac
    local word prefixed=
    for word in $words; do
        prefixed+="$1$word "
    done
    _mdl_reply "$prefixed"
}}

_mdl() {{
    local words typed command= position=0 arguments options value= word IFS=$' \t\n'
    COMPREPLY=()
    _mdl_split
    if [[ ${{words[${{#words[@]}} - 1]}} == *[\<\>] || $typed == [\<\>]* ]]; then
        return # what follows is the name of a file
    fi
    _mdl_about ''
    for word in "${{words[@]:1}}"; do
        if [[ -n $value ]]; then
            value=
        elif [[ $word == -* ]]; then
            _mdl_value "$word"
        elif [[ -z $command ]]; then
            command=$word
            _mdl_about "$command"
        else
            ((position++ == 0)) && _mdl_after "$command $word"
        fi
    done
    if [[ -n $value ]]; then
        _mdl_offer '' "$value"
    elif [[ $typed == --*=* ]]; then
        _mdl_value "${{typed%%=*}}"
        _mdl_offer "${{typed%%=*}}=" "$value"
    elif [[ $typed == -* ]]; then
        compopt +o default 2>/dev/null
        for word in $options; do
            _mdl_reply "${{word%%=*}}"
        done
    else
        _mdl_argument
        _mdl_offer '' "$value"
    fi
}}

complete -o default -F _mdl mdl
"""
