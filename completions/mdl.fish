# Completion of mdl for fish, printed by `mdl completion fish`.

# The words before the cursor that are neither options nor their values: a command and its arguments.
function __mdl_words
    set -l valued --model -m --destination --include --jobs --ctx --limit-rate --ca --sort --filter --key --name --sample --older-than --family --limit --page --system --set --user -u --temperature --top-p --top-k --seed --max-tokens --stop --gpu-layers --threads --adapter --session --schema --pull --host --port --api-key --parallel --batch --idle --max-models --memory --allow-host --url --prompt --streams --tokens --repeat --svg
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
complete -c mdl -n __mdl_expects_command -l version -d 'Print the version and leave'
complete -c mdl -n __mdl_expects_command -l help -s h -d 'Show this message and exit'
complete -c mdl -n __mdl_expects_command -a download -d 'Fetch models, or what of them is missing. Prints the folder of each'
complete -c mdl -n __mdl_expects_command -a list -d 'The models on this machine'
complete -c mdl -n __mdl_expects_command -a inspect -d 'What a model is, here or at its source. Header, files, template, licence, versions'
complete -c mdl -n __mdl_expects_command -a import -d 'Bring models of this machine into the cache. Prints the folder of each'
complete -c mdl -n __mdl_expects_command -a resolve -d 'How a reference is decided, step by step'
complete -c mdl -n __mdl_expects_command -a rm -d 'Remove versions from the cache, with what only they use'
complete -c mdl -n __mdl_expects_command -a verify -d 'Check what is in the cache against its digests. Says how to mend what is damaged'
complete -c mdl -n __mdl_expects_command -a prune -d 'Remove from the cache what nothing uses'
complete -c mdl -n __mdl_expects_command -a df -d 'What models take on the disk, and what sharing saves'
complete -c mdl -n __mdl_expects_command -a alias -d 'Names of your own for models'
complete -c mdl -n __mdl_expects_command -a catalog -d 'Models that mdl recommends, by short names: mdl chat qwen3:4b'
complete -c mdl -n __mdl_expects_command -a search -d 'Find models in the catalog and on Hugging Face. Tells which fit this machine'
complete -c mdl -n __mdl_expects_command -a config -d 'What is set, by which file or variable, and changing it'
complete -c mdl -n __mdl_expects_command -a profile -d 'How models are used, and further names for them'
complete -c mdl -n __mdl_expects_command -a login -d 'Keep credentials for a registry, Hugging Face or an API. They are tried first'
complete -c mdl -n __mdl_expects_command -a logout -d 'Forget the credentials for a registry, Hugging Face or an API'
complete -c mdl -n __mdl_expects_command -a chat -d 'Talk with a model, or get an answer to a prompt or a pipe'
complete -c mdl -n __mdl_expects_command -a serve -d 'Serve models to programs, by OpenAI\'s HTTP API'
complete -c mdl -n __mdl_expects_command -a ps -d 'What a running server has loaded, and for how long'
complete -c mdl -n __mdl_expects_command -a stop -d 'Make a running server let go of models'
complete -c mdl -n __mdl_expects_command -a bench -d 'Measure how fast a model is here. Prompts, answers, several at once'
complete -c mdl -n __mdl_expects_command -a completion -d 'Print what makes a shell complete commands and models'

complete -c mdl -n '__mdl_command_is download pull' -l model -s m -x -a '(__mdl_ask model)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is download pull' -l destination -x -a '(__fish_complete_directories)' -d 'Put plain files into DIR and nothing into the cache'
complete -c mdl -n '__mdl_command_is download pull' -l include -x -d 'Only the files that match; may be repeated'
complete -c mdl -n '__mdl_command_is download pull' -l dry-run -d 'Only say what would be done'
complete -c mdl -n '__mdl_command_is download pull' -l force -d 'Fetch again what is here already'
complete -c mdl -n '__mdl_command_is download pull' -l jobs -x -d 'Files to fetch at once'
complete -c mdl -n '__mdl_command_is download pull' -l fit -d 'Choose the best quantization that fits this machine'
complete -c mdl -n '__mdl_command_is download pull' -l ctx -x -d 'Tokens of prompt and answer together'
complete -c mdl -n '__mdl_command_is download pull' -l limit-rate -x -d 'Bytes a second of all files together: 500k, 20M, 1.5G'
complete -c mdl -n '__mdl_command_is download pull' -l insecure -d 'Ask the registry by http, or whatever its certificate says'
complete -c mdl -n '__mdl_command_is download pull' -l ca -r -F -d 'Certificate authorities to trust besides the system\'s'
complete -c mdl -n '__mdl_command_is download pull' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is download pull' -l quiet -s q -d 'Print only names or folders'
complete -c mdl -n '__mdl_command_is download pull' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is download pull' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1+ download pull' -a '(__mdl_ask model)'

complete -c mdl -n '__mdl_command_is list ls' -l versions -d 'A line for each version'
complete -c mdl -n '__mdl_command_is list ls' -l adapters -d 'Adapters too, in a section of their own'
complete -c mdl -n '__mdl_command_is list ls' -l checkpoints -d 'Training checkpoints too, in a section of their own'
complete -c mdl -n '__mdl_command_is list ls' -l sort -x -a 'name version size modified -name -version -size -modified' -d 'name, version, size or modified; -size turns it round'
complete -c mdl -n '__mdl_command_is list ls' -l filter -x -d 'For instance \'size>1GB\' or \'format=gguf\''
complete -c mdl -n '__mdl_command_is list ls' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is list ls' -l quiet -s q -d 'Print only names or folders'
complete -c mdl -n '__mdl_command_is list ls' -l help -s h -d 'Show this message and exit'

complete -c mdl -n '__mdl_command_is inspect show' -l model -s m -x -a '(__mdl_ask model)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is inspect show' -l files -d 'Only the files'
complete -c mdl -n '__mdl_command_is inspect show' -l template -d 'Only the chat template'
complete -c mdl -n '__mdl_command_is inspect show' -l license -d 'Only the licence'
complete -c mdl -n '__mdl_command_is inspect show' -l metadata -d 'Only the header\'s keys and values'
complete -c mdl -n '__mdl_command_is inspect show' -l tensors -d 'Only the tensors'
complete -c mdl -n '__mdl_command_is inspect show' -l settings -d 'Only settings and parameters, and where each comes from'
complete -c mdl -n '__mdl_command_is inspect show' -l key -x -d 'The whole value of one key of the header'
complete -c mdl -n '__mdl_command_is inspect show' -l remote -d 'What its source has, even if the model is here'
complete -c mdl -n '__mdl_command_is inspect show' -l ctx -x -d 'Tokens of prompt and answer together'
complete -c mdl -n '__mdl_command_is inspect show' -l insecure -d 'Ask the registry by http, or whatever its certificate says'
complete -c mdl -n '__mdl_command_is inspect show' -l ca -r -F -d 'Certificate authorities to trust besides the system\'s'
complete -c mdl -n '__mdl_command_is inspect show' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is inspect show' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is inspect show' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 inspect show' -a '(__mdl_ask model)'

complete -c mdl -n '__mdl_command_is import' -l name -x -d 'What to call it: my-model, my-model:v2, org/name:Q4_K_M'
complete -c mdl -n '__mdl_command_is import' -l link -d 'Share the file itself; an error where that cannot be'
complete -c mdl -n '__mdl_command_is import' -l copy -d 'Make a copy, whatever the disk could share'
complete -c mdl -n '__mdl_command_is import' -l move -d 'Take the original away when it is in'
complete -c mdl -n '__mdl_command_is import' -l dry-run -d 'Only say what would be done'
complete -c mdl -n '__mdl_command_is import' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is import' -l quiet -s q -d 'Print only names or folders'
complete -c mdl -n '__mdl_command_is import' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 import' -r -F

complete -c mdl -n '__mdl_command_is resolve' -l model -s m -x -a '(__mdl_ask model)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is resolve' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is resolve' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is resolve' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 resolve' -a '(__mdl_ask model)'

complete -c mdl -n '__mdl_command_is rm remove' -l model -s m -x -a '(__mdl_ask cached)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is rm remove' -l yes -s y -d 'Do not ask'
complete -c mdl -n '__mdl_command_is rm remove' -l dry-run -d 'Only say what would be done'
complete -c mdl -n '__mdl_command_is rm remove' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is rm remove' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1+ rm remove' -a '(__mdl_ask cached)'

complete -c mdl -n '__mdl_command_is verify' -l model -s m -x -a '(__mdl_ask cached)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is verify' -l quick -d 'Sizes and times; contents only where these look wrong'
complete -c mdl -n '__mdl_command_is verify' -l sample -x -d 'Read only so much of all contents, the longest unread first'
complete -c mdl -n '__mdl_command_is verify' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is verify' -l quiet -s q -d 'Tell only what is found'
complete -c mdl -n '__mdl_command_is verify' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1+ verify' -a '(__mdl_ask cached)'

complete -c mdl -n '__mdl_command_is prune' -l older-than -x -d 'Only what has been unused for so long: 30d, 12h'
complete -c mdl -n '__mdl_command_is prune' -l partials -d 'Partial downloads too, though they could go on'
complete -c mdl -n '__mdl_command_is prune' -l yes -s y -d 'Do not ask'
complete -c mdl -n '__mdl_command_is prune' -l dry-run -d 'Only say what would be done'
complete -c mdl -n '__mdl_command_is prune' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is prune' -l help -s h -d 'Show this message and exit'

complete -c mdl -n '__mdl_command_is df' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is df' -l help -s h -d 'Show this message and exit'

complete -c mdl -n '__mdl_command_is alias' -l model -s m -x -a '(__mdl_ask model)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is alias' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is alias' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 alias' -a 'list set rm'
complete -c mdl -n '__mdl_follows 2 alias set' -a '(__mdl_ask model)'
complete -c mdl -n '__mdl_follows 1 alias rm' -a '(__mdl_ask alias)'

complete -c mdl -n '__mdl_command_is catalog' -l family -x -d 'Only the sizes of one model, such as qwen3'
complete -c mdl -n '__mdl_command_is catalog' -l fits -d 'Only what this machine has the memory for'
complete -c mdl -n '__mdl_command_is catalog' -l limit -x -d 'Lines of a page; all by default'
complete -c mdl -n '__mdl_command_is catalog' -l page -x -d 'Which page to show'
complete -c mdl -n '__mdl_command_is catalog' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is catalog' -l quiet -s q -d 'Print only names or folders'
complete -c mdl -n '__mdl_command_is catalog' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is catalog' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 catalog' -a 'show refresh reset'
complete -c mdl -n '__mdl_follows 1 catalog show' -a '(__mdl_ask entry)'

complete -c mdl -n '__mdl_command_is search' -l sort -x -a 'downloads likes modified created trending' -d 'downloads, likes, modified, created or trending'
complete -c mdl -n '__mdl_command_is search' -l limit -x -d 'Models of a page'
complete -c mdl -n '__mdl_command_is search' -l page -x -d 'Which page to show'
complete -c mdl -n '__mdl_command_is search' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is search' -l quiet -s q -d 'Print only names or folders'
complete -c mdl -n '__mdl_command_is search' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is search' -l help -s h -d 'Show this message and exit'

complete -c mdl -n '__mdl_command_is config' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is config' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 config' -a 'show get set unset path edit'
complete -c mdl -n '__mdl_follows 1 config get' -a '(__mdl_ask key)'
complete -c mdl -n '__mdl_follows 1 config set' -a '(__mdl_ask key)'
complete -c mdl -n '__mdl_follows 1 config unset' -a '(__mdl_ask key)'

complete -c mdl -n '__mdl_command_is profile' -l model -s m -x -a '(__mdl_ask model)' -d 'new: for which model; may be repeated'
complete -c mdl -n '__mdl_command_is profile' -l name -x -d 'new: what clients may call it; may be repeated'
complete -c mdl -n '__mdl_command_is profile' -l system -x -d 'new: instructions for the model'
complete -c mdl -n '__mdl_command_is profile' -l set -x -d 'new: a setting or parameter; may be repeated'
complete -c mdl -n '__mdl_command_is profile' -l force -d 'new, import: replace what is there'
complete -c mdl -n '__mdl_command_is profile' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is profile' -l quiet -s q -d 'Print only names or folders'
complete -c mdl -n '__mdl_command_is profile' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is profile' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 profile' -a 'list show new check import refresh reset'
complete -c mdl -n '__mdl_follows 1 profile show' -a '(__mdl_ask profile)'
complete -c mdl -n '__mdl_follows 1+ profile check' -r -F
complete -c mdl -n '__mdl_follows 1+ profile import' -r -F

complete -c mdl -n '__mdl_command_is login' -l user -s u -x -d 'Your name there'
complete -c mdl -n '__mdl_command_is login' -l password-stdin -d 'Read the password or token from a pipe'
complete -c mdl -n '__mdl_command_is login' -l insecure -d 'Ask the registry by http, or whatever its certificate says'
complete -c mdl -n '__mdl_command_is login' -l ca -r -F -d 'Certificate authorities to trust besides the system\'s'
complete -c mdl -n '__mdl_command_is login' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is login' -l help -s h -d 'Show this message and exit'

complete -c mdl -n '__mdl_command_is logout' -l help -s h -d 'Show this message and exit'

complete -c mdl -n '__mdl_command_is chat run' -l model -s m -x -a '(__mdl_ask model)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is chat run' -l system -x -d 'Instructions for the model'
complete -c mdl -n '__mdl_command_is chat run' -l temperature -x -d '0 takes the likeliest word each time'
complete -c mdl -n '__mdl_command_is chat run' -l top-p -x -d 'Choose among the likeliest, up to this sum'
complete -c mdl -n '__mdl_command_is chat run' -l top-k -x -d 'Choose among this many'
complete -c mdl -n '__mdl_command_is chat run' -l seed -x -d 'The same seed gives the same answer'
complete -c mdl -n '__mdl_command_is chat run' -l max-tokens -x -d 'The longest answer'
complete -c mdl -n '__mdl_command_is chat run' -l stop -x -d 'End the answer before TEXT; may be repeated'
complete -c mdl -n '__mdl_command_is chat run' -l ctx -x -d 'Tokens of prompt and answer together'
complete -c mdl -n '__mdl_command_is chat run' -l gpu-layers -x -a 'auto' -d 'Layers on the GPU; auto: as many as fit'
complete -c mdl -n '__mdl_command_is chat run' -l threads -x -d 'Threads on the CPU'
complete -c mdl -n '__mdl_command_is chat run' -l adapter -x -a '(__mdl_ask model)' -d 'A LoRA adapter to apply; may be repeated'
complete -c mdl -n '__mdl_command_is chat run' -l session -x -d 'Go on with a saved conversation'
complete -c mdl -n '__mdl_command_is chat run' -l schema -r -F -d 'A JSON schema that the answer keeps to'
complete -c mdl -n '__mdl_command_is chat run' -l think -l no-think -d 'Let the model think first, or not'
complete -c mdl -n '__mdl_command_is chat run' -l stats -d 'Tell tokens and speed after each answer'
complete -c mdl -n '__mdl_command_is chat run' -l pull -x -a 'missing never always newer' -d 'What to do about a model that is not here: missing, never, always, newer'
complete -c mdl -n '__mdl_command_is chat run' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is chat run' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 chat run' -a '(__mdl_ask model)'

complete -c mdl -n '__mdl_command_is serve' -l model -s m -x -a '(__mdl_ask model)' -d 'Serve only this; may be repeated'
complete -c mdl -n '__mdl_command_is serve' -l host -x -d 'The address to listen on'
complete -c mdl -n '__mdl_command_is serve' -l port -x -d '0 takes any that is free'
complete -c mdl -n '__mdl_command_is serve' -l api-key -x -d 'What clients must send; better set as MDL_API_KEY. Who sends the KEY of a MODEL is given that one, whatever they name. May be repeated'
complete -c mdl -n '__mdl_command_is serve' -l parallel -x -d 'Requests of a model answered at once; 4'
complete -c mdl -n '__mdl_command_is serve' -l batch -x -d 'Tokens of prompts computed in one step; 512'
complete -c mdl -n '__mdl_command_is serve' -l ctx -x -d 'Tokens of prompt and answer together'
complete -c mdl -n '__mdl_command_is serve' -l gpu-layers -x -a 'auto' -d 'Layers on the GPU; auto: as many as fit'
complete -c mdl -n '__mdl_command_is serve' -l threads -x -d 'Threads on the CPU'
complete -c mdl -n '__mdl_command_is serve' -l adapter -x -a '(__mdl_ask model)' -d 'A LoRA adapter to apply; may be repeated'
complete -c mdl -n '__mdl_command_is serve' -l idle -x -d 'Unload a model after this; 0 is never'
complete -c mdl -n '__mdl_command_is serve' -l max-models -x -d 'Models loaded at once; 0: as many as fit'
complete -c mdl -n '__mdl_command_is serve' -l memory -x -d 'What models may take of the memory, such as 8G'
complete -c mdl -n '__mdl_command_is serve' -l allow-host -x -d 'Another name that clients use for this server'
complete -c mdl -n '__mdl_command_is serve' -l insecure -d 'Let others in without a key, on an address that they can reach'
complete -c mdl -n '__mdl_command_is serve' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is serve' -l pull -x -a 'missing never always newer' -d 'What to do about a model that is not here: missing, never, always, newer'
complete -c mdl -n '__mdl_command_is serve' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is serve' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1+ serve' -a '(__mdl_ask model)'

complete -c mdl -n '__mdl_command_is ps' -l url -x -d 'The server to ask, if it is not http://127.0.0.1:3000'
complete -c mdl -n '__mdl_command_is ps' -l api-key -x -d 'The key of the server; better set as MDL_API_KEY'
complete -c mdl -n '__mdl_command_is ps' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is ps' -l quiet -s q -d 'Print only names or folders'
complete -c mdl -n '__mdl_command_is ps' -l help -s h -d 'Show this message and exit'

complete -c mdl -n '__mdl_command_is stop' -l model -s m -x -a '(__mdl_ask model)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is stop' -l all -d 'All that is loaded'
complete -c mdl -n '__mdl_command_is stop' -l force -d 'Do not wait for the answers that it is giving'
complete -c mdl -n '__mdl_command_is stop' -l url -x -d 'The server to ask, if it is not http://127.0.0.1:3000'
complete -c mdl -n '__mdl_command_is stop' -l api-key -x -d 'The key of the server; better set as MDL_API_KEY'
complete -c mdl -n '__mdl_command_is stop' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is stop' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1+ stop' -a '(__mdl_ask model)'

complete -c mdl -n '__mdl_command_is bench' -l model -s m -x -a '(__mdl_ask model)' -d 'The same as the argument MODEL'
complete -c mdl -n '__mdl_command_is bench' -l prompt -x -d 'Tokens of the prompts; 128,512,2048 as far as they fit'
complete -c mdl -n '__mdl_command_is bench' -l streams -x -d 'Answers at once'
complete -c mdl -n '__mdl_command_is bench' -l tokens -x -d 'Tokens of an answer'
complete -c mdl -n '__mdl_command_is bench' -l repeat -x -d 'How often each figure is measured'
complete -c mdl -n '__mdl_command_is bench' -l ctx -x -d 'Tokens of prompt and answer together'
complete -c mdl -n '__mdl_command_is bench' -l gpu-layers -x -a 'auto' -d 'Layers on the GPU; auto: as many as fit'
complete -c mdl -n '__mdl_command_is bench' -l threads -x -d 'Threads on the CPU'
complete -c mdl -n '__mdl_command_is bench' -l svg -r -F -d 'Draw a picture of the figures'
complete -c mdl -n '__mdl_command_is bench' -l json -d 'Print one JSON document'
complete -c mdl -n '__mdl_command_is bench' -l pull -x -a 'missing never always newer' -d 'What to do about a model that is not here: missing, never, always, newer'
complete -c mdl -n '__mdl_command_is bench' -l offline -d 'Never use the network'
complete -c mdl -n '__mdl_command_is bench' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 bench' -a '(__mdl_ask model)'

complete -c mdl -n '__mdl_command_is completion' -l help -s h -d 'Show this message and exit'
complete -c mdl -n '__mdl_argument_is 1 completion' -a 'bash zsh fish'
