"""Commands that run models: chat, serve."""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import ContextSize, Json, ModelOption, Offline, Pull
from mdl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mdl.chat.speaker import Speaker
    from mdl.engine import Engine
    from mdl.engine.request import EngineFiles, EngineSettings, Format
    from mdl.library import Library
    from mdl.model import Model
    from mdl.profiles import Profile

AUTO = "auto"
PARALLEL, BATCH = 4, 512  # of mdl serve, where neither a flag nor a profile says otherwise
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LARGEST_INPUT = 64 << 20  # bytes of a prompt from a pipe

GpuLayers = Annotated[str, typer.Option(metavar="auto|N", help="Layers on the GPU; auto: as many as fit.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads on the CPU.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="MODEL[=SCALE]", help="A LoRA adapter to apply; may be repeated."),
]


def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL [PROMPT]", help="Whom to ask, and what; without PROMPT a conversation."
        ),
    ] = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions for the model.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="N", help="0 takes the likeliest word each time.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="N", help="Choose among the likeliest, up to this sum.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="N", help="Choose among this many.")] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="The longest answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before TEXT; may be repeated.")
    ] = None,
    context: ContextSize = None,
    gpu_layers: GpuLayers = AUTO,
    threads: Threads = None,
    adapter: Adapters = None,
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a saved conversation.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON schema that the answer keeps to.")
    ] = None,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Let the model think first, or not.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell tokens and speed after each answer.")] = False,
    pull: Pull = None,
    offline: Offline = False,
) -> int:
    """Talk with a model, or get an answer to a prompt or a pipe.

    \b
    mdl chat demo                               a conversation; /? tells more
    mdl chat demo "What is 7 plus 5?"           one answer
    cat notes.txt | mdl chat demo "Summarize:"  about a text
    mdl chat openai://api.openai.com/v1/gpt-4o  others run it; mdl login
    mdl chat demo --adapter run@latest=0.8      a LoRA: name, path or checkpoint
    mdl chat --session trip                     goes on with what /save trip kept
    """
    from mdl.engine import Engine

    name, prompt = _model_and_prompt(words or [], model or _talked_with(words, session))
    settings = engine_settings(context, gpu_layers, threads, parallel=1)
    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": tuple(stop) if stop else None,
    }
    given = {name: value for name, value in sampling.items() if value is not None}
    flags = {"--ctx": context, "--threads": threads, "--adapter": adapter}
    only_here = [flag for flag, value in flags.items() if value] + ["--gpu-layers"] * (gpu_layers != AUTO)
    # It starts now, while the rest is still being decided.
    with ExitStack() as leases, Engine(starts=not _is_address(name)) as first:
        asked = _with_piped(prompt)
        library = options.open_library(pull=pull, offline=offline)
        told = tell_of_profiles()

        def open_model(text: str, started: Engine | None = None) -> "tuple[Speaker, Profile]":
            found = _found(library, text)
            if found.is_api:
                speaker, profile = _at_api(library, found, text, given, only_here)
                _tell(profile.notes, told)
                return speaker, profile
            files, profile = held_files(library, text, adapter or [], leases, found)
            _tell(profile.notes, told)
            local = started or Engine()
            load(local, files, profile.engine_settings(settings), library)
            return local, profile

        engine, profile = open_model(name, first)
        if engine is not first:
            first.close()
        from mdl import complete, config
        from mdl.chat import Options

        form = _form(schema)
        chosen = Options(name, system, given, think, stats, session, config.wants_color(), profile, form)
        if asked is not None:
            from mdl.chat.answer import answer_once

            return answer_once(engine, asked, chosen)
        from mdl.chat.conversation import converse

        return converse(engine, chosen, open_model, lambda: sorted(complete.models("")))


def tell_of_profiles() -> set[str]:
    """What is wrong with the user's profiles does not end what works without them. What was told."""
    from mdl import profilefile

    told: set[str] = set()
    _tell((profilefile.left_out(failure) for failure in profilefile.users().failures), told)
    return told


def _tell(notes: "Iterable[str]", told: set[str]) -> None:
    """What of the files about a model could not be used, each once."""
    for note in notes:
        if note not in told:
            told.add(note)
            ui.talk(ui.inert(note, one_line=True))


def load(engine: "Engine", files: "EngineFiles", settings: "EngineSettings", library: "Library") -> None:
    """Loads a model as it fits: where llama.cpp computes on GPUs, with as many layers there as have room.
    Raises UnsupportedModel for one that does not fit there, or not in the memory that the user allows."""
    from mdl import machine

    # Not to be asked on other machines: what is typed should not wait for the engine to start.
    gpus = engine.gpus() if machine.may_compute_on_gpus() else []
    if gpus or library.settings.memory:
        from mdl import memory, placement
        from mdl.weights import Weights, identify

        found = identify(files.model)
        parts = found.files if isinstance(found, Weights) else (files.model,)
        here = machine.now(gpus)
        most = library.settings.memory or memory.room(here.memory_available)
        placed = placement.place(placement.read(parts), settings, here, most)
        settings = placed.settings
        if placed.note:
            ui.talk(placed.note)
    engine.load(files, settings)


def _form(schema: Path | None) -> "Format | None":
    """What answers are held to, from the file of a JSON schema."""
    if schema is None:
        return None
    from mdl.engine.request import Format

    try:
        return Format("schema", schema.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UsageError(f"{schema} cannot be read: {cause}", hint="--schema FILE") from None


def _model_and_prompt(words: list[str], option: str | None) -> tuple[str, str]:
    """The model stands first, unless --model names it."""
    if option is None and not words:
        raise UsageError("which model?", hint='for instance: mdl chat demo "What is the capital of France?"')
    if option is not None:
        return option, " ".join(words)
    return words[0], " ".join(words[1:])


def _talked_with(words: list[str] | None, session: str | None) -> str | None:
    """The model of a saved conversation, for who names none."""
    if words or session is None:
        return None
    from mdl.chat.session import load

    return load(session).model or None


def _with_piped(prompt: str) -> str | None:
    """The prompt with what was piped in below it; None when there is neither: then a person wants to talk."""
    if sys.stdin is None or sys.stdin.isatty():
        return prompt or None
    piped = sys.stdin.buffer.read(LARGEST_INPUT + 1)
    if len(piped) > LARGEST_INPUT:
        raise UsageError(f"the input is longer than {ui.size(LARGEST_INPUT)}", hint="send less")
    text = "\n\n".join(part for part in (prompt, piped.decode("utf-8", "replace").strip()) if part)
    if not text:
        raise UsageError("there is nothing to ask", hint="write a prompt, or pipe one in")
    return text


def _is_address(name: str) -> bool:
    """Whether this is the name of a model that an API runs."""
    return name.lower().startswith(("openai://", "azure://"))


def _found(library: "Library", name: str) -> "Model":
    from mdl.progress import watch

    with watch(ask=True) as watched:
        return library.get(name, watched)


def _at_api(
    library: "Library", model: "Model", name: str, given: "Mapping[str, Any]", only_here: list[str]
) -> "tuple[Speaker, Profile]":
    """A model that an API runs, to be asked; and how it wants to be used. `only_here` are flags that mean
    nothing there."""
    if only_here:
        raise UsageError(f"{only_here[0]} is for models that run here", hint=f"{model.reference} does not")
    from mdl import layers, upstream
    from mdl.apiengine import NEUTRAL, ApiEngine
    from mdl.profiles import Profile, merged

    profile = layers.of(library, model, name=name).merged()
    place = upstream.of(model, library.settings)
    asked = ApiEngine(place, library.settings, {*given, *profile.sampling})
    return asked, merged(Profile(sampling=NEUTRAL), profile)


def held_files(
    library: "Library", name: str, adapters: list[str], leases: ExitStack, model: "Model | None" = None
) -> "tuple[EngineFiles, Profile]":
    """What an engine loads for a model and its adapters, held so that nobody removes it meanwhile; and the
    model's profile."""
    from mdl import layers, runnable
    from mdl.engine.request import EngineFiles
    from mdl.progress import watch

    with watch(ask=True) as watched:
        model = model or library.get(name, watched)
        runnable.hold(library.store, model, leases)
        weights = runnable.for_engine(model)
        profile = layers.of(library, model, weights, name).merged()
        find = partial(library.get, watch=watched)
        asked = (*profile.adapters, *adapters)
        found = runnable.adapters_for(library.store, model, weights, asked, find, leases)
    return EngineFiles(weights.first, weights.projector, tuple(found), profile.template), profile


def engine_settings(
    context: int | None, gpu_layers: str, threads: int | None, parallel: int, batch: int = BATCH
) -> "EngineSettings":
    from mdl.engine.request import EngineSettings

    if gpu_layers != AUTO and not gpu_layers.isdecimal():
        raise UsageError(f"--gpu-layers cannot be {gpu_layers!r}", hint="auto, or a number of layers")
    layers = None if gpu_layers == AUTO else int(gpu_layers)
    return EngineSettings(context, layers, threads, parallel, max(batch, parallel))


def serve(
    models: options.Models = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Serve only this; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any that is free.")
    ] = 3000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=MODEL]",
            help="What clients must send; better set as MDL_API_KEY. Who sends the KEY of a MODEL is given "
            "that one, whatever they name. May be repeated.",
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=64, help="Requests of a model answered at once; 4.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=8192, help="Tokens of prompts computed in one step; 512."),
    ] = None,
    context: ContextSize = None,
    gpu_layers: GpuLayers = AUTO,
    threads: Threads = None,
    adapter: Adapters = None,
    idle: Annotated[str, typer.Option(metavar="TIME", help="Unload a model after this; 0 is never.")] = "5m",
    max_models: Annotated[
        int, typer.Option(metavar="N", min=0, max=64, help="Models loaded at once; 0: as many as fit.")
    ] = 0,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What models may take of the memory, such as 8G.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name that clients use for this server.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Let others in without a key, on an address that they can reach."),
    ] = False,
    json: Json = False,
    pull: Pull = None,
    offline: Offline = False,
) -> int:
    """Serve models to programs, by OpenAI's HTTP API.

    \b
    mdl serve                                           all models, on demand
    mdl serve qwen3:4b --api-key sk-1 --host 0.0.0.0    one, for who has the key
    mdl serve --api-key sk-1=gpt-4 --api-key sk-2=demo  to each key its model
    """
    from mdl import layers, runnable
    from mdl.progress import watch
    from mdl.server.options import ServeOptions
    from mdl.server.run import serve as run_server

    library = options.open_library(pull=pull, offline=offline, memory=memory, ask=False)
    told = tell_of_profiles()
    names = (*(models or []), *(model or []))
    key, keys = _keys(api_key or [], library.settings.api_key)
    given = tuple(model for _, model in keys if model and model not in names)
    names = (*names, *given) if names else ()
    adapters = tuple(adapter or ())
    for name in names or given:
        with watch(json=json, ask=True) as watched, ExitStack() as leases:
            found = library.get(name, watched)
            if found.is_api and not adapters:
                continue
            weights = runnable.for_engine(found)
            _tell(layers.of(library, found, weights, name).merged().notes, told)
            find = partial(library.get, watch=watched)
            runnable.adapters_for(library.store, found, weights, adapters, find, leases)
    chosen = ServeOptions(
        host=host,
        port=port,
        api_key=key,
        keys=keys,
        models=names,
        adapters=adapters,
        engine=engine_settings(context, gpu_layers, threads, parallel or PARALLEL, batch or BATCH),
        unsaid=frozenset(name for name, given in (("parallel", parallel), ("batch", batch)) if given is None),
        idle_seconds=_seconds(idle) or None,
        max_models=max_models,
        memory=library.settings.memory,
        allow_hosts=tuple(allow_host or ()),
        insecure=insecure,
    )

    def ready(address: str) -> None:
        if json:
            ui.show_json({"url": address})
        else:
            ui.out(f"mdl serves {', '.join(names) or 'all models of this machine'} on {address}")

    run_server(library, chosen, ready)
    return 0


def _keys(given: list[str], configured: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The key for all models, and others with the model that each is for: KEY=MODEL. What ends in = is a key
    of its own, as base64 has them. Raises UsageError for a key that would be for two."""
    if given == [""]:
        return "", ()
    split = [text.partition("=") for text in given]
    keys = tuple(
        (key, model) if model.strip("=") else (f"{key}{sign}{model}", "") for key, sign, model in split
    )
    if len({key for key, _ in keys}) < len(keys) or not all(key for key, _ in keys):
        raise UsageError("each --api-key takes another KEY, and none is empty", hint="--api-key KEY=MODEL")
    if any(not model for _, model in keys):
        configured = ""
    return configured, keys


def _seconds(text: str) -> float:
    """90, 90s, 5m, 1h; 0 is never."""
    number, factor = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        seconds = float(number) * factor
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise UsageError(f"--idle cannot be {text!r}", hint="for instance 30s, 5m, 1h, or 0 for never")
    return seconds
