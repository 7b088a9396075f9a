# Completion of mdl for bash, printed by `mdl completion bash`.

# What there is to know of a command: its options, each with what it takes after a "=" (DIR, FILE, TEXT, the
# words to choose from, or "@" and what to ask mdl for), and its arguments; the last one stands for all that
# follow if it ends in "...".
_mdl_about() {
    case $1 in
        '')
            arguments='download,list,inspect,import,resolve,rm,verify,prune,df,alias,catalog,search,config,profile,login,logout,chat,serve,ps,stop,bench,completion'
            options='
                --version
                --help -h
            '
            ;;
        download | pull)
            arguments='@model...'
            options='
                --model=@model -m=@model
                --destination=DIR
                --include=TEXT
                --dry-run
                --force
                --jobs=TEXT
                --fit
                --ctx=TEXT
                --limit-rate=TEXT
                --insecure
                --ca=FILE
                --json
                --quiet -q
                --offline
                --help -h
            '
            ;;
        list | ls)
            arguments='TEXT'
            options='
                --versions
                --adapters
                --checkpoints
                --sort=name,version,size,modified,-name,-version,-size,-modified
                --filter=TEXT
                --json
                --quiet -q
                --help -h
            '
            ;;
        inspect | show)
            arguments='@model'
            options='
                --model=@model -m=@model
                --files
                --template
                --license
                --metadata
                --tensors
                --settings
                --key=TEXT
                --remote
                --ctx=TEXT
                --insecure
                --ca=FILE
                --json
                --offline
                --help -h
            '
            ;;
        import)
            arguments='FILE'
            options='
                --name=TEXT
                --link
                --copy
                --move
                --dry-run
                --json
                --quiet -q
                --help -h
            '
            ;;
        resolve)
            arguments='@model'
            options='
                --model=@model -m=@model
                --json
                --offline
                --help -h
            '
            ;;
        rm | remove)
            arguments='@cached...'
            options='
                --model=@cached -m=@cached
                --yes -y
                --dry-run
                --json
                --help -h
            '
            ;;
        verify)
            arguments='@cached...'
            options='
                --model=@cached -m=@cached
                --quick
                --sample=TEXT
                --json
                --quiet -q
                --help -h
            '
            ;;
        prune)
            arguments=''
            options='
                --older-than=TEXT
                --partials
                --yes -y
                --dry-run
                --json
                --help -h
            '
            ;;
        df)
            arguments=''
            options='
                --json
                --help -h
            '
            ;;
        alias)
            arguments='list,set,rm'
            options='
                --model=@model -m=@model
                --json
                --help -h
            '
            ;;
        catalog)
            arguments='show,refresh,reset'
            options='
                --family=TEXT
                --fits
                --limit=TEXT
                --page=TEXT
                --json
                --quiet -q
                --offline
                --help -h
            '
            ;;
        search)
            arguments='TEXT...'
            options='
                --sort=downloads,likes,modified,created,trending
                --limit=TEXT
                --page=TEXT
                --json
                --quiet -q
                --offline
                --help -h
            '
            ;;
        config)
            arguments='show,get,set,unset,path,edit'
            options='
                --json
                --help -h
            '
            ;;
        profile)
            arguments='list,show,new,check,import,refresh,reset'
            options='
                --model=@model -m=@model
                --name=TEXT
                --system=TEXT
                --set=TEXT
                --force
                --json
                --quiet -q
                --offline
                --help -h
            '
            ;;
        login)
            arguments='TEXT'
            options='
                --user=TEXT -u=TEXT
                --password-stdin
                --insecure
                --ca=FILE
                --json
                --help -h
            '
            ;;
        logout)
            arguments='TEXT'
            options='
                --help -h
            '
            ;;
        chat | run)
            arguments='@model'
            options='
                --model=@model -m=@model
                --system=TEXT
                --temperature=TEXT
                --top-p=TEXT
                --top-k=TEXT
                --seed=TEXT
                --max-tokens=TEXT
                --stop=TEXT
                --ctx=TEXT
                --gpu-layers=auto
                --threads=TEXT
                --adapter=@model
                --session=TEXT
                --schema=FILE
                --think --no-think
                --stats
                --pull=missing,never,always,newer
                --offline
                --help -h
            '
            ;;
        serve)
            arguments='@model...'
            options='
                --model=@model -m=@model
                --host=TEXT
                --port=TEXT
                --api-key=TEXT
                --parallel=TEXT
                --batch=TEXT
                --ctx=TEXT
                --gpu-layers=auto
                --threads=TEXT
                --adapter=@model
                --idle=TEXT
                --max-models=TEXT
                --memory=TEXT
                --allow-host=TEXT
                --insecure
                --json
                --pull=missing,never,always,newer
                --offline
                --help -h
            '
            ;;
        ps)
            arguments=''
            options='
                --url=TEXT
                --api-key=TEXT
                --json
                --quiet -q
                --help -h
            '
            ;;
        stop)
            arguments='@model...'
            options='
                --model=@model -m=@model
                --all
                --force
                --url=TEXT
                --api-key=TEXT
                --json
                --help -h
            '
            ;;
        bench)
            arguments='@model'
            options='
                --model=@model -m=@model
                --prompt=TEXT
                --streams=TEXT
                --tokens=TEXT
                --repeat=TEXT
                --ctx=TEXT
                --gpu-layers=auto
                --threads=TEXT
                --svg=FILE
                --json
                --pull=missing,never,always,newer
                --offline
                --help -h
            '
            ;;
        completion)
            arguments='bash,zsh,fish'
            options='
                --help -h
            '
            ;;
        *)
            arguments=TEXT...
            options=
            ;;
    esac
}

# What the arguments are after the command and the action in $1, as in "config set".
_mdl_after() {
    case $1 in
        'alias set') arguments='TEXT TEXT @model' ;;
        'alias rm') arguments='TEXT @alias' ;;
        'catalog show') arguments='TEXT @entry' ;;
        'catalog refresh') arguments='TEXT TEXT' ;;
        'config get') arguments='TEXT @key' ;;
        'config set') arguments='TEXT @key TEXT...' ;;
        'config unset') arguments='TEXT @key' ;;
        'profile show') arguments='TEXT @profile' ;;
        'profile new') arguments='TEXT TEXT' ;;
        'profile check') arguments='TEXT FILE...' ;;
        'profile import') arguments='TEXT FILE...' ;;
        'profile refresh') arguments='TEXT TEXT' ;;
    esac
}

# What the argument at $position takes.
_mdl_argument() {
    local each number=0 last=
    value=
    for each in $arguments; do
        ((number++ == position)) && value=${each%...}
        last=$each
    done
    [[ $position -ge $number && $last == *... ]] && value=${last%...}
}

# The words before the cursor, and what is typed of the one at it. Bash has split them at ":", "=" and "@".
_mdl_split() {
    local index rest=${COMP_LINE:0:COMP_POINT} word
    words=()
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if ((index == 0)) || [[ $rest == [[:space:]]* ]]; then
            words+=('')
        fi
        rest=${rest#"${rest%%[![:space:]]*}"}
        ((index == COMP_CWORD)) && word=$rest
        words[${#words[@]} - 1]+=$word
        rest=${rest#"$word"}
    done
    typed=${words[${#words[@]} - 1]}
    unset "words[${#words[@]} - 1]"
}

# What the option $1 takes.
_mdl_value() {
    local entry
    value=
    for entry in $options; do
        [[ $entry == "$1="* ]] && value=${entry#*=}
    done
}

# Offer those of the words in $1 that begin as typed. Readline leaves alone what stands before a break.
_mdl_reply() {
    local breaks=${COMP_WORDBREAKS//[^:=@]/} kept= begin=$typed word
    if [[ $typed == [\"\']* ]]; then
        begin=${typed:1}
    elif [[ -n $breaks ]]; then
        kept=${typed%"${typed##*[$breaks]}"}
    fi
    for word in $1; do
        [[ $word == "$begin"* ]] && COMPREPLY+=("${word#"$kept"}")
    done
}

# Offer values of the kind $2, each after $1. Where nothing is offered, bash completes the names of files.
_mdl_offer() {
    local begin=${typed#"$1"} words=
    case $2 in
        @*)
            begin=${begin#[\"\']}
            if [[ $2 != @model ]]; then
                compopt +o default 2>/dev/null
            elif [[ $begin == [/~]* || $begin == ./* || $begin == ../* ]]; then
                return
            fi
            words=$(mdl __complete "${2#@}" "$begin" 2>/dev/null)
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
            words=${2//,/ }
            ;;
    esac
    local word prefixed=
    for word in $words; do
        prefixed+="$1$word "
    done
    _mdl_reply "$prefixed"
}

_mdl() {
    local words typed command= position=0 arguments options value= word IFS=$' \t\n'
    COMPREPLY=()
    _mdl_split
    if [[ ${words[${#words[@]} - 1]} == *[\<\>] || $typed == [\<\>]* ]]; then
        return # what follows is the name of a file
    fi
    _mdl_about ''
    for word in "${words[@]:1}"; do
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
        _mdl_value "${typed%%=*}"
        _mdl_offer "${typed%%=*}=" "$value"
    elif [[ $typed == -* ]]; then
        compopt +o default 2>/dev/null
        for word in $options; do
            _mdl_reply "${word%%=*}"
        done
    else
        _mdl_argument
        _mdl_offer '' "$value"
    fi
}

complete -o default -F _mdl mdl
