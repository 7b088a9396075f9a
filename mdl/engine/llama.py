"""llama.cpp behind a few calls: load, tokenize, run a step, sample. Knows no requests, pipes or templates.

The only module that imports llama_cpp, and only its low-level half: the package's `__init__` also brings
numpy, diskcache and jinja2, which takes 300 ms instead of 50. What makes llama.cpp end the process (values
out of range, a sampler that is NULL) is checked before it gets there.
"""

import ctypes
import importlib.machinery
import os
import re
import sys
import types
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from math import inf
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

from mdl.engine.request import EngineFiles, EngineSettings, Format, Loaded, Logprob, Sampling, Sizes, Task
from mdl.errors import DiskError, EngineError, MdlError, NotFound, UnsupportedModel, UsageError


def _low_level() -> Any:
    """`llama_cpp.llama_cpp`, without running `llama_cpp/__init__.py`."""
    spec = importlib.machinery.PathFinder.find_spec("llama_cpp", sys.path)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("llama-cpp-python is not installed", hint="pip install llama-cpp-python")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    try:
        import llama_cpp.llama_cpp as low_level
    except (RuntimeError, OSError, ImportError, AttributeError) as error:
        cause = " ".join(str(error).split())
        raise EngineError(
            f"llama.cpp cannot be loaded: {cause}", hint="install llama-cpp-python again"
        ) from None
    return low_level


C = _low_level()

NO_TOKEN = -1
FORBIDS = -100.0  # a bias of so much, as in OpenAI's API
TEXTS, WHOLE_TEXTS = 64, 8  # in one step; where states are whole, each one takes memory
TINY = 50_000_000  # parameters: below this a step is too short for a second thread to pay
SMALL = 5_000_000  # and below this not even for hundreds of tokens at once
_ERROR, _CONTINUED = 4, 5  # ggml_log_level
_GPU, _INTEGRATED = 1, 2  # ggml_backend_dev_type


class Log:
    """What llama.cpp says: errors go to stderr, where a death report finds them. A warning would be taken for
    the cause there."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.offloaded = 0
        self._level = 0
        self.callback = C.llama_log_callback(self._hear)  # llama.cpp calls it as long as the process lives

    def _hear(self, level: int, text: bytes, _: Any) -> None:
        self._level = level if level != _CONTINUED else self._level
        if match := re.search(rb"offloaded (\d+)/\d+ layers", text):
            self.offloaded = int(match[1])
        line = " ".join(text.decode("utf-8", "replace").split()) if self._level >= _ERROR else ""
        if line:
            self.errors = [*self.errors[-15:], line]
            os.write(2, line.encode("utf-8", "replace") + b"\n")

    def cause(self) -> str:
        """The first error, which the later ones only pass on, without the names of functions before it."""
        return (
            re.sub(r"^(\w+: |error loading model: )+", "", self.errors[0])
            if self.errors
            else "no reason given"
        )


class Runner:
    """A model, its context, and one reused batch. Used from one thread only: llama.cpp ends a process for
    two."""

    def __init__(self, files: EngineFiles, settings: EngineSettings) -> None:
        """Raises NotFound, DiskError, UnsupportedModel with llama.cpp's own cause, UsageError for the
        settings."""
        started = perf_counter()
        self.log = Log()
        C.llama_log_set(self.log.callback, None)
        C.llama_backend_init()
        self._model = self._load_model(files.model, settings)
        self._vocab = C.llama_model_get_vocab(self._model)
        refuse_what_does_not_answer(self._model, self._vocab, files.model)
        parameters = C.llama_model_n_params(self._model)
        self.threads = settings.threads or (1 if parameters < TINY else physical_cores())
        self.whole = C.llama_model_is_recurrent(self._model) or C.llama_model_is_hybrid(self._model)
        self.context, self.cells, self.shared = self._sizes(settings)
        self._adapters = self._load_adapters(files.adapters)
        self.pooling = pooling(self._meta)
        self.task: Task = purpose(self.pooling, self._meta)
        if self.task == "generate":
            self._open(settings)
        if self.task != "generate":
            self.cells = self.context
        self._pieces: list[bytes | bool | None] = [False] * C.llama_vocab_n_tokens(self._vocab)
        self._longest = 0
        self._grammars: Any = None
        self._preparing = Lock()
        self._echoing = False
        self._read_vocabulary()
        self.loaded = self._describe(files, perf_counter() - started)

    # Loading

    def _load_model(self, path: Path, settings: EngineSettings) -> Any:
        check_readable(path)
        params = C.llama_model_default_params()
        params.n_gpu_layers = -1 if settings.gpu_layers is None else settings.gpu_layers
        if not C.llama_supports_gpu_offload():
            params.n_gpu_layers = 0
        if settings.mmap is not None:
            params.use_mmap = settings.mmap
        params.use_mlock = bool(settings.mlock)
        model = C.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise UnsupportedModel(f"{path.name} cannot be loaded: {why_not(path) or self.log.cause()}")
        return model

    def _sizes(self, settings: EngineSettings) -> Sizes:
        """Tokens for one request, and for all."""
        trained = C.llama_model_n_ctx_train(self._model)
        if settings.context is not None and settings.context > trained > 0:
            raise UsageError(
                f"a context of {settings.context:,} tokens is more than the model learned, {trained:,}",
                hint=f"use a context of at most {trained}",
            )
        return settings.sizes(trained, self._cell_size(), physical_memory(), self.whole)

    def _cell_size(self) -> int:
        """Bytes that a token takes in the cache, at most."""
        architecture = self._meta("general.architecture")
        head = C.llama_model_n_embd(self._model) // max(1, C.llama_model_n_head(self._model))
        lengths = (self._meta(f"{architecture}.attention.{name}_length") for name in ("key", "value"))
        width = sum(int(length) if length.isdecimal() else head for length in lengths)
        layers, heads = C.llama_model_n_layer(self._model), max(1, C.llama_model_n_head_kv(self._model))
        return max(1, int(layers) * int(heads) * width * 2)

    def _open(self, settings: EngineSettings) -> None:
        """Prepares for answers; what writes none shows here, where its header did not say so."""
        self._context = self._new_context(settings)
        self.slots: int = C.llama_n_seq_max(self._context)
        self._memory = C.llama_get_memory(self._context)
        # Less than was asked for where the context is small.
        self.batch: int = min(settings.batch, C.llama_n_batch(self._context))
        self._set_up_batch(self.batch)
        if not self._memory:
            self.task = "embed"
            C.llama_free(self._context)

    def _new_context(self, settings: EngineSettings) -> Any:
        params = context_params(self.cells, settings, self.shared, self.whole)
        params.n_threads = params.n_threads_batch = self.threads
        context = C.llama_init_from_model(self._model, params)
        if not context:
            raise UnsupportedModel(
                f"there is no room for a context of {self.cells:,} tokens: {self.log.cause()}",
                hint="ask for a smaller context or fewer parallel requests",
            )
        self.adapt(context)
        return context

    def _load_adapters(self, adapters: tuple[tuple[Path, float], ...]) -> list[tuple[Any, float]]:
        return [(self._load_adapter(path), scale) for path, scale in adapters]

    def adapt(self, context: Any) -> None:
        """Lets a context use the adapters."""
        if not self._adapters:
            return
        loaded, given = zip(*self._adapters, strict=True)
        handles = (C.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
        scales = (ctypes.c_float * len(loaded))(*given)
        if C.llama_set_adapters_lora(context, handles, len(loaded), scales):
            raise UnsupportedModel(f"the adapters cannot be used together: {self.log.cause()}")

    def _load_adapter(self, path: Path) -> Any:
        check_readable(path)
        header = read_header(path)
        if header.get("general.type") != "adapter":
            raise UnsupportedModel(f"{path.name} is not an adapter")
        base, own = self._meta("general.architecture"), header.get("general.architecture")
        if base != own:
            raise UnsupportedModel(f"{path.name} is an adapter for {own} models, and this model is {base}")
        self.log.errors.clear()
        adapter = C.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise UnsupportedModel(f"the adapter {path.name} does not fit this model: {self.log.cause()}")
        return adapter

    def _set_up_batch(self, size: int) -> None:
        """Arrays that llama.cpp reads; what never changes is written here, once."""
        self._tokens = (C.llama_token * size)()
        self._positions = (C.llama_pos * size)()
        self._slots = (C.llama_seq_id * size)()
        self._outputs = (ctypes.c_int8 * size)()
        self._one = (ctypes.c_int32 * size)(*[1] * size)
        slot = ctypes.POINTER(C.llama_seq_id)
        width = ctypes.sizeof(C.llama_seq_id)
        start = ctypes.addressof(self._slots)
        self._slot_of = (slot * size)(*(ctypes.cast(start + index * width, slot) for index in range(size)))
        self._batch = C.llama_batch(
            0,
            ctypes.cast(self._tokens, ctypes.POINTER(C.llama_token)),
            None,
            ctypes.cast(self._positions, ctypes.POINTER(C.llama_pos)),
            ctypes.cast(self._one, ctypes.POINTER(ctypes.c_int32)),
            ctypes.cast(self._slot_of, ctypes.POINTER(slot)),
            ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8)),
        )

    def _read_vocabulary(self) -> None:
        vocab = self._vocab
        kinds = [C.llama_vocab_get_attr(vocab, token) for token in range(len(self._pieces))]
        control = C.LLAMA_TOKEN_ATTR_CONTROL | C.LLAMA_TOKEN_ATTR_UNKNOWN
        own = C.LLAMA_TOKEN_ATTR_USER_DEFINED
        self.controls = {self._text(token): token for token, kind in enumerate(kinds) if kind & control}
        # No control tokens, but found in any text as if they were: Qwen's <think> and <tool_call>.
        others = (self._text(token) for token, kind in enumerate(kinds) if kind & own)
        self.tags = {text for text in others if _TAG.fullmatch(text)}
        self.named = {
            f"{name}_token": self._text(token)
            for name, token in (
                ("bos", C.llama_vocab_bos(vocab)),
                ("eos", C.llama_vocab_eos(vocab)),
                ("pad", C.llama_vocab_pad(vocab)),
            )
            if token >= 0
        }
        fim = C.llama_vocab_fim_pre, C.llama_vocab_fim_suf, C.llama_vocab_fim_mid
        self._infill = tuple(token(vocab) for token in fim)
        self.infill = min(self._infill) >= 0
        self._bos = C.llama_vocab_bos(vocab) if C.llama_vocab_get_add_bos(vocab) else -1
        end, between = C.llama_vocab_eos(vocab), C.llama_vocab_sep(vocab)
        self._end = end if end >= 0 else between
        self.closing = {end, between} - {NO_TOKEN}
        self.adds_space = C.llama_vocab_type(vocab) == C.LLAMA_VOCAB_TYPE_SPM

    def _describe(self, files: EngineFiles, seconds: float) -> Loaded:
        gpu = C.llama_supports_gpu_offload()
        return Loaded(
            architecture=self._meta("general.architecture"),
            description=_string(C.llama_model_desc, self._model).replace(" ?B ", " "),  # of no known size
            size=C.llama_model_size(self._model),
            parameters=C.llama_model_n_params(self._model),
            layers=C.llama_model_n_layer(self._model),
            gpu_layers=self.log.offloaded if gpu else 0,
            devices=devices(),
            vocabulary=len(self._pieces),
            trained_context=C.llama_model_n_ctx_train(self._model),
            context=self.context,
            cells=self.cells,
            threads=self.threads,
            template="given" if files.template is not None else "model" if self.template else "default",
            seconds=seconds,
            task=self.task,
            width=1 if self.task == "rank" else C.llama_model_n_embd_out(self._model),
            infill=self.infill,
        )

    def _meta(self, key: str) -> str:
        return _string(C.llama_model_meta_val_str, self._model, key.encode())

    @property
    def template(self) -> str | None:
        """The model's own chat template."""
        template = C.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    def vectors(self, settings: EngineSettings) -> "Vectors":
        """Raises UnsupportedModel when there is no memory for it."""
        return Vectors(self, settings)

    # Text

    def tokenize(self, pieces: Iterable[str]) -> list[int]:
        """The tokens of the pieces put together; a control token is one only within a piece.

        Raises UsageError for what is not text.
        """
        tokens: list[int] = []
        for number, piece in enumerate(pieces):
            tokens += self._tokenize(piece, continued=number > 0)
        if self._bos >= 0 and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def prompt(self, prompt: str | tuple[int, ...], suffix: str | None) -> list[int]:
        """The tokens of a text that is gone on with, or that comes before a suffix.

        Raises UsageError for tokens that the model does not have, UnsupportedModel for a suffix where it was
        not trained to fill in.
        """
        tokens = self._checked(prompt) if isinstance(prompt, tuple) else self.tokens(prompt)
        if suffix is not None:
            tokens = self._around(tokens, self.tokens(suffix))
        if self._bos >= 0 and tokens[:1] != [self._bos] and not isinstance(prompt, tuple):
            tokens.insert(0, self._bos)
        return tokens

    def tokens(self, text: str) -> list[int]:
        """Of a text as it is, in which what reads like a control token is one."""
        return self._tokenize(text, continued=False)

    def text(self, tokens: Sequence[int]) -> str:
        """Raises UsageError for what is no token."""
        pieces = b"".join(map(self.text_of, self._checked(tokens)))
        return pieces.decode("utf-8", "replace").removeprefix(" " if self.adds_space else "")

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        vocabulary = len(self._pieces)
        if wrong := [token for token in tokens if not 0 <= token < vocabulary]:
            raise UsageError(f"there is no token {wrong[0]}: the model knows {vocabulary:,}")
        return list(tokens)

    def _around(self, before: list[int], after: list[int]) -> list[int]:
        """Prefix, suffix, and then the middle, which is the answer: as models for code are trained."""
        if not self.infill:
            raise UnsupportedModel("the model was not made to fill in: it takes no suffix", field="suffix")
        prefix, suffix, middle = self._infill
        return [prefix, *before, suffix, *after, middle]

    def fewest_tokens(self, characters: int) -> int:
        """What a text of that length is at least: no token stands for more than the longest one does."""
        if characters < self.context:
            return 0  # without a look at each token, which takes a moment where there are many
        if not self._longest:
            texts = (C.llama_vocab_get_text(self._vocab, token) for token in range(len(self._pieces)))
            self._longest = max(1, *(len(text) for text in texts))
        return characters // self._longest

    def framed(self, text: str) -> list[int]:
        """Of a text with what the model was trained to see around it. What reads like a control token is
        text."""
        return self._tokenize(text, continued=False, framed=True, control=False)

    def pair(self, query: str, document: str) -> list[int]:
        """Of a query and a document, as models that tell how relevant it is were trained to see them: by the
        model's template for it, or one behind the other, with what the vocabulary has between them."""
        if template := C.llama_model_chat_template(self._model, b"rerank"):
            parts = re.split(r"(\{query\}|\{document\})", template.decode("utf-8", "replace"))
            said = {"{query}": self._disarmed(query), "{document}": self._disarmed(document)}
            pieces = "".join(said.get(part, part) for part in parts).split(_MARK)
            return [token for piece in pieces for token in self.tokens(piece)]
        end = [self._end] if C.llama_vocab_get_add_eos(self._vocab) else []
        middle = [C.llama_vocab_sep(self._vocab)] if C.llama_vocab_get_add_sep(self._vocab) else []
        begin = [self._bos] if self._bos >= 0 else []
        return [*begin, *self._plain(query), *end, *middle, *self._plain(document), *end]

    def _disarmed(self, text: str) -> str:
        """With a mark within what reads like a control token, to cut it at."""
        return self._control.sub(lambda found: found[0][0] + _MARK + found[0][1:], text.replace(_MARK, ""))

    @cached_property
    def _control(self) -> "re.Pattern[str]":
        texts = (text for text in self.controls if len(text) > 1)
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")

    def _plain(self, text: str) -> list[int]:
        return self._tokenize(text, continued=False, control=False)

    def _tokenize(
        self, text: str, continued: bool, *, framed: bool = False, control: bool = True
    ) -> list[int]:
        if (
            continued and self.adds_space
        ):  # behind a byte that merges with nothing, no space is put before the text
            guard = self._tokenize("\x01", continued=False)
            return self._tokenize("\x01" + text, continued=False)[len(guard) :]
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text holds half of a character ({text[error.start]!a})") from None
        room = len(data) + 2
        tokens = (C.llama_token * room)()
        count = C.llama_tokenize(self._vocab, data, len(data), tokens, room, framed, control)
        if count < 0:
            raise UsageError("the text cannot be turned into tokens")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes | None:
        """The bytes of a token of an answer; None for those that end it."""
        piece = self._pieces[token]
        if piece is False:
            ends = C.llama_vocab_is_eog(self._vocab, token)
            piece = self._pieces[token] = None if ends else self._bytes(token, special=False)
        return piece  # type: ignore[return-value]

    def show(self, tags: Iterable[str]) -> None:
        """Of the control tokens, which say nothing, those with these texts are shown in answers."""
        for tag in tags:
            if tag in self.controls:
                self._pieces[self.controls[tag]] = tag.encode()

    def _text(self, token: int) -> str:
        return self._bytes(token, special=True).decode("utf-8", "replace")

    def _bytes(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = C.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    # Running

    def sampler(self, sampling: Sampling) -> int:
        """A chain that chooses the next token. To be given back with `free`.

        Raises UsageError for a bias of a token that the vocabulary does not have.
        """
        chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        try:
            for link in self._links(sampling):
                if not link:
                    raise EngineError("llama.cpp refuses the sampling parameters")
                C.llama_sampler_chain_add(chain, link)
        except MdlError:
            C.llama_sampler_free(chain)
            raise
        return chain  # type: ignore[no-any-return]

    def _links(self, sampling: Sampling) -> Iterable[Any]:
        """In llama.cpp's own order: biases, penalties, what is cut off, then temperature and choice."""
        if sampling.logit_bias:
            yield self._biases(sampling.logit_bias)
        if sampling.ignore_eos:
            yield self._biases(tuple((token, FORBIDS) for token in self._ends))
        yield from self._penalties(sampling)
        if sampling.temperature == 0:
            yield C.llama_sampler_init_greedy()
        elif sampling.mirostat:
            yield C.llama_sampler_init_temp(sampling.temperature)
            yield self._mirostat(sampling)
        else:
            yield from self._cuts(sampling)
            yield C.llama_sampler_init_temp(sampling.temperature)
            yield C.llama_sampler_init_dist(seed_of(sampling))

    def _biases(self, biases: tuple[tuple[int, float], ...]) -> Any:
        vocabulary = len(self._pieces)
        if unknown := [token for token, _ in biases if token >= vocabulary]:
            raise UsageError(f"logit_bias has token {unknown[0]}, and the model knows {vocabulary:,}")
        entries = (C.llama_logit_bias * len(biases))(
            *((token, bias if bias > FORBIDS else -inf) for token, bias in biases)
        )
        return C.llama_sampler_init_logit_bias(vocabulary, len(biases), entries)

    @cached_property
    def _ends(self) -> list[int]:
        """The tokens that end an answer."""
        return [token for token in range(len(self._pieces)) if C.llama_vocab_is_eog(self._vocab, token)]

    def _penalties(self, sampling: Sampling) -> Iterable[Any]:
        vocabulary = len(self._pieces)
        if sampling.repeat_penalty != 1:
            last = self._back(sampling.repeat_last_n)
            yield C.llama_sampler_init_penalties(vocabulary, last, sampling.repeat_penalty, 0.0, 0.0)
        if sampling.frequency_penalty or sampling.presence_penalty:
            frequency, presence = sampling.frequency_penalty, sampling.presence_penalty
            yield C.llama_sampler_init_penalties(vocabulary, self.context, 1.0, frequency, presence)
        if sampling.dry_multiplier:
            yield self._dry(sampling)

    def _back(self, last: int) -> int:
        return min(last, self.context) if last >= 0 else self.context

    def _dry(self, sampling: Sampling) -> Any:
        breakers = [text.encode() for text in sampling.dry_sequence_breakers]
        return C.llama_sampler_init_dry(
            self._vocab,
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            self._back(sampling.dry_penalty_last_n),
            (ctypes.c_char_p * len(breakers))(*breakers),
            len(breakers),
        )

    def _cuts(self, sampling: Sampling) -> Iterable[Any]:
        if sampling.top_n_sigma:
            yield C.llama_sampler_init_top_n_sigma(sampling.top_n_sigma)
        if sampling.top_k:
            yield C.llama_sampler_init_top_k(sampling.top_k)
        if sampling.typical_p < 1:
            yield C.llama_sampler_init_typical(sampling.typical_p, 1)
        if sampling.top_p < 1:
            yield C.llama_sampler_init_top_p(sampling.top_p, 1)
        if sampling.min_p > 0:
            yield C.llama_sampler_init_min_p(sampling.min_p, 1)
        if sampling.xtc_probability > 0:
            chance, threshold = sampling.xtc_probability, sampling.xtc_threshold
            yield C.llama_sampler_init_xtc(chance, threshold, 1, seed_of(sampling))

    def _mirostat(self, sampling: Sampling) -> Any:
        seed, tau, eta = seed_of(sampling), sampling.mirostat_tau, sampling.mirostat_eta
        if sampling.mirostat == 2:
            return C.llama_sampler_init_mirostat_v2(seed, tau, eta)
        return C.llama_sampler_init_mirostat(len(self._pieces), seed, tau, eta, 100)

    def knows(self, format: Format) -> bool:
        """Whether `constraint` answers at once."""
        return self._grammars is not None and bool(self._grammars.knows(format))

    def prepare(self, format: Format, patient: bool = True) -> bool:
        """Makes `constraint` answer at once. Takes seconds at worst; unless `patient` a moment, after which
        the form may still be unknown: then False. Any thread may call it."""
        with self._preparing:
            if self._grammars is None:
                self._grammars = self._new_grammars()
        return self.knows(format) or bool(self._grammars.prepare(format, patient))

    def _new_grammars(self) -> Any:
        from mdl.engine.grammar import Grammars

        pieces = [self.text_of(token) for token in range(len(self._pieces))]
        return Grammars(pieces, self.controls, self._ends, self._tokenize_bytes)

    def constraint(self, format: Format) -> Any:
        """What holds an answer to a form. Raises UsageError for one that is none."""
        return self._grammars.constraint(format)

    def _tokenize_bytes(self, data: bytes) -> list[int]:
        return self._tokenize(data.decode("utf-8", "replace"), continued=True)

    def free(self, sampler: int) -> None:
        C.llama_sampler_free(sampler)

    def run(self, work: Sequence[tuple[Any, int]]) -> list[int | MdlError] | None:
        """Computes the next n tokens of each (sequence, n). Returns a new token for each sequence of which
        nothing is left to compute, or why it has none; or None when the cache has no room.

        Raises EngineError when llama.cpp cannot compute; then the cache is empty.
        """
        places = self._fill(work)
        status = C.llama_decode(self._context, self._batch)
        if status == 0:
            if self._echoing:
                self._echo(work)
            sample, context = C.llama_sampler_sample, self._context
            return [
                sample(sequence.sampler, context, place) if sequence.plain else self._choose(sequence, place)
                for sequence, place in places
            ]
        if status == 1:
            return None
        C.llama_memory_clear(self._memory, True)
        raise EngineError(f"llama.cpp cannot compute this (llama_decode: {status}): {self.log.cause()}")

    def _fill(self, work: Sequence[tuple[Any, int]]) -> list[tuple[Any, int]]:
        """Writes the batch. The sequences that get a token, and the places of the batch that tell which."""
        places = []
        end = 0
        self._echoing = False
        for sequence, count in work:
            tokens, computed, slot = sequence.tokens, sequence.computed, sequence.slot
            self._echoing |= sequence.echoes
            if count == 1:
                self._tokens[end] = tokens[computed]
                self._positions[end] = computed
                self._slots[end] = slot
            else:
                start = end
                self._tokens[start : start + count] = tokens[computed : computed + count]
                self._positions[start : start + count] = range(computed, computed + count)
                self._slots[start : start + count] = [slot] * count
                self._outputs[start : start + count] = [sequence.echoes] * count
                end += count - 1
            last = computed + count == len(tokens)
            self._outputs[end] = last or sequence.echoes
            if last:
                places.append((sequence, end))
            end += 1
        self._batch.n_tokens = end
        return places

    def _choose(self, sequence: Any, place: int) -> int | MdlError:
        """The next token of one that is held to a form, or whose logprobs are told."""
        try:
            return self._sample(sequence, place)
        except MdlError as error:
            return error

    def _sample(self, sequence: Any, place: int) -> int:
        logits = C.llama_get_logits_ith(self._context, place)
        likely = None if sequence.logprobs is None else Likely(self, logits, sequence.logprobs)
        held = sequence.constraint is not None and not sequence.answer.thinks
        try:
            if held:
                sequence.constraint.mask(ctypes.addressof(logits.contents))
            token: int = C.llama_sampler_sample(sequence.sampler, self._context, place)
            if held and sequence.forbids and not sequence.constraint.allows(token):
                why = f"{sequence.forbids} forbids all that the form allows"
                raise UsageError(why, field=sequence.forbids)
            if held:
                sequence.constraint.accept(token)
        except MdlError as error:  # of this answer alone
            sequence.failure = error
            return NO_TOKEN
        if likely is not None:
            sequence.tell(likely.of(token))
        return token

    def _echo(self, work: Sequence[tuple[Any, int]]) -> None:
        """Tells the logprobs of the prompts that ask for it."""
        end = 0
        for sequence, count in work:
            for place in range(end, end + count) if sequence.echoes else ():
                position = sequence.computed + place - end + 1
                if position < len(sequence.tokens):
                    logits = C.llama_get_logits_ith(self._context, place)
                    likely = Likely(self, logits, sequence.logprobs or 0)
                    sequence.tell_prompt(position, likely.of(sequence.tokens[position]))
            end += count

    def text_of(self, token: int) -> bytes:
        """The bytes of any token, also of those that say nothing in an answer."""
        return self._bytes(token, special=True)

    def forget(self, slot: int) -> None:
        """Frees the cells of a slot."""
        C.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Lets the target, which is empty, begin with the first tokens of the source: where cells are shared
        the same cells, else copies, of which llama.cpp makes only all there are."""
        if self.shared:
            C.llama_memory_seq_cp(self._memory, source, target, 0, length)
        else:
            C.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.cut(target, length)

    def cut(self, slot: int, length: int) -> None:
        """Frees the cells of a slot behind so many."""
        C.llama_memory_seq_rm(self._memory, slot, length, -1)


class Likely:
    """The probabilities in one place of a batch, before anything is cut off. The logits may change after."""

    def __init__(self, runner: Runner, logits: Any, most: int) -> None:
        import numpy as np

        vocabulary = len(runner._pieces)
        self._runner = runner
        self._logits = np.ctypeslib.as_array(logits, (vocabulary,))
        row = self._logits.astype(np.float64)
        highest = row.max()
        self._sum = highest + np.log(np.exp(row - highest).sum())
        most = min(most, vocabulary)
        # The lower id goes first where two are the same, as for llama.cpp's greedy sampler.
        best = np.argpartition(-row, most - 1)[:most] if 0 < most < vocabulary else np.arange(most)
        order = sorted(best.tolist(), key=lambda token: (-row[token], token))
        self._top = tuple((token, runner.text_of(token), float(row[token] - self._sum)) for token in order)

    def of(self, token: int) -> Logprob:
        """Of the token that was taken."""
        logprob = float(self._logits[token] - self._sum)
        return Logprob(token, self._runner.text_of(token), logprob, self._top)


def context_params(cells: int, settings: EngineSettings, shared: bool = True, whole: bool = False) -> Any:
    """What memory depends on. The defaults of mdl.memory.need are the same."""
    params = C.llama_context_default_params()
    params.n_seq_max = settings.slots(shared, whole)
    # For less than a token of each sequence, llama.cpp ends the process.
    params.n_ctx = max(cells, params.n_seq_max)
    params.n_batch = params.n_ubatch = max(settings.batch, params.n_seq_max)
    params.kv_unified = shared
    params.type_k, params.type_v = _cache_type(settings.cache_type_k), _cache_type(settings.cache_type_v)
    if settings.flash_attention is not None:
        on, off = C.LLAMA_FLASH_ATTN_TYPE_ENABLED, C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = on if settings.flash_attention else off
    return params


BF16 = 30  # of ggml.h; the package has no name for it


_TAG = re.compile(r"<[^\s<>]{1,60}>|\[/?[A-Z_]{2,60}\]")
_MARK = "\ue000"  # of private use: it means nothing in any text


def _cache_type(name: str | None) -> int:
    if name == "bf16":
        return BF16
    return int(getattr(C, f"GGML_TYPE_{(name or 'f16').upper()}"))


def seed_of(sampling: Sampling) -> int:
    """32 bits, as llama.cpp takes them; the value that means "any" to llama.cpp is avoided."""
    seed = int.from_bytes(os.urandom(4)) if sampling.seed is None else sampling.seed
    return seed % 0xFFFFFFFF


def check_readable(path: Path) -> None:
    """Raises NotFound, DiskError or UnsupportedModel before llama.cpp says it less well."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise UnsupportedModel(f"{path.name} is not a GGUF file")


def why_not(path: Path) -> str:
    """For files that are whole and no language model: what they are."""
    header = read_header(path)
    if header.get("general.type") == "adapter":
        return "it is an adapter, which is used together with the model that it was made for"
    if header.get("general.type") == "mmproj" or header.get("general.architecture") == "clip":
        return "it is a projector (mmproj), which is used together with its model"
    return ""


def refuse_what_does_not_answer(model: Any, vocab: Any, path: Path) -> None:
    for refused, what in (
        (C.llama_vocab_type(vocab) == C.LLAMA_VOCAB_TYPE_NONE, "has no vocabulary"),
        (C.llama_model_has_encoder(model), "has an encoder, which is not supported yet"),
        (not C.llama_model_has_decoder(model), "has no decoder: it writes no answers"),
        (C.llama_model_is_diffusion(model), "is a diffusion model, which is not supported"),
    ):
        if refused:
            raise UnsupportedModel(f"{path.name} {what}")


class _GgufParams(ctypes.Structure):  # struct gguf_init_params in ggml's gguf.h
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def read_header(path: Path) -> dict[str, str]:
    """What the header says about the kind of file; empty where it cannot be read."""
    try:
        init, free, find, text = (
            _function(name, *types)
            for name, *types in (
                ("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _GgufParams),
                ("gguf_free", None, ctypes.c_void_p),
                ("gguf_find_key", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p),
                ("gguf_get_val_str", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64),
            )
        )
        kind = _function("gguf_get_kv_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
    except AttributeError:
        return {}
    header = init(os.fsencode(path), _GgufParams(True, None))
    if not header:
        return {}
    try:
        found = {key: find(header, key.encode()) for key in ("general.type", "general.architecture")}
        string = 8  # enum gguf_type
        return {
            key: text(header, index).decode("utf-8", "replace")
            for key, index in found.items()
            if index >= 0 and kind(header, index) == string
        }
    finally:
        free(header)


def devices() -> tuple[str, ...]:
    """The devices that ggml knows, as "CUDA0 (NVIDIA H200)". Empty where its functions cannot be reached."""
    try:
        count = _function("ggml_backend_dev_count", ctypes.c_size_t)
        get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
        name = _function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
        description = _function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    except AttributeError:
        return ()
    handles = [get(index) for index in range(count())]
    return tuple(f"{_decoded(name(handle))} ({_decoded(description(handle))})" for handle in handles)


def usable_gpus() -> list[dict[str, Any]]:
    """None where this llama.cpp computes on none, which is told without a look at them."""
    return gpus() if C.llama_supports_gpu_offload() else []


def gpus() -> list[dict[str, Any]]:
    """The GPUs that models are put on by default, with their memory in bytes. `shared` is the machine's own:
    that of integrated ones, which llama.cpp takes only where there is no other, and of Apple's."""
    C.llama_backend_init()
    try:
        get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
        kind = _function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
        name = _function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
        sizes = ctypes.POINTER(ctypes.c_size_t)
        memory = _function("ggml_backend_dev_memory", None, ctypes.c_void_p, sizes, sizes)
    except AttributeError:
        return []
    handles = [get(index) for index in range(_function("ggml_backend_dev_count", ctypes.c_size_t)())]
    own = [handle for handle in handles if kind(handle) == _GPU]
    found = []
    for handle in own or [handle for handle in handles if kind(handle) == _INTEGRATED]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(handle, ctypes.byref(free), ctypes.byref(total))
        shared = not own or sys.platform == "darwin"
        found.append(
            {"name": _decoded(name(handle)), "total": total.value, "free": free.value, "shared": shared}
        )
    return found


def _decoded(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace").strip()


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml that llama_cpp does not declare. On Linux and macOS it is found through libllama,
    which is linked to ggml; Windows looks in the library alone, and raises AttributeError."""
    function = C._lib[name]
    function.restype, function.argtypes = result, arguments
    return function


def _string(call: Any, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    length = call(*arguments, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if length >= 0 else ""


def physical_cores() -> int:
    """Cores that this process may use, those that share hardware counted once. Elsewhere than on Linux:
    half."""
    try:
        allowed = os.sched_getaffinity(0)
        siblings = {
            Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
            for cpu in allowed
        }
    except (AttributeError, OSError):
        return max(1, (os.cpu_count() or 2) // 2)
    return max(1, len(siblings))


def physical_memory() -> int:
    """Bytes; 8 GiB where the system does not say (Windows has no sysconf)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


# Vectors


def pooling(meta: Callable[[str], str]) -> int:
    """How the vectors of a text's tokens become one, by the model's header: enum llama_pooling_type, -1 where
    it does not say."""
    value = meta(f"{meta('general.architecture')}.pooling_type")
    return int(value) if re.fullmatch("[0-4]", value) else C.LLAMA_POOLING_TYPE_UNSPECIFIED


def purpose(pooling: int, meta: Callable[[str], str]) -> Task:
    """What a model was made for: those that embed or rank say how they pool, or read in both directions."""
    if pooling == C.LLAMA_POOLING_TYPE_RANK:
        return "rank"
    both_ways = meta(f"{meta('general.architecture')}.attention.causal") == "false"
    return "embed" if both_ways or pooling > C.LLAMA_POOLING_TYPE_NONE else "generate"


class Vectors:
    """Texts to vectors, or to scores, many at once; `mdl.engine.embedding.Vectors` says what is what.

    In a context of its own, which is made anew when a text needs more room: most need little, and a model
    that reads in both directions takes memory for the square of what it reads at once. A model that does not
    say how to pool gives the mean.
    """

    def __init__(self, runner: Runner, settings: EngineSettings) -> None:
        """Raises UnsupportedModel when there is no memory for it."""
        self._runner = runner
        parameters = C.llama_model_n_params(runner._model)
        self._threads = settings.threads or (1 if parameters < SMALL else physical_cores())
        self.limit: int = runner.context
        self.step: int = min(settings.batch, self.limit)
        self.most: int = min(self.step, WHOLE_TEXTS if runner.whole else TEXTS)
        self.width: int = runner.loaded.width
        self.splits = False
        self._context: Any = None
        self._room = 0
        pointer, width = ctypes.POINTER(C.llama_seq_id), ctypes.sizeof(C.llama_seq_id)
        self._numbers = (C.llama_seq_id * self.most)(*range(self.most))
        start = ctypes.addressof(self._numbers)
        self._slots = [ctypes.cast(start + index * width, pointer) for index in range(self.most)]
        self._make(self.step)

    def _make(self, room: int) -> None:
        """A context for texts of so many tokens, and for steps."""
        if self._context:
            C.llama_free(self._context)
        self._room = 0
        self._context = C.llama_init_from_model(self._runner._model, self._params(room))
        if not self._context:
            raise UnsupportedModel(
                f"there is no room for a text of {room:,} tokens: {self._runner.log.cause()}",
                hint="send shorter texts",
            )
        self._runner.adapt(self._context)
        self._room = room
        self._memory = C.llama_get_memory(self._context)
        self.splits = bool(self._memory) and bool(C.llama_get_causal_attn(self._context))
        self.pooling: int = C.llama_pooling_type(self._context)

    def _params(self, room: int) -> Any:
        params = C.llama_context_default_params()
        params.n_ctx = room
        # For more than a batch at once, or less than a token of each text, llama.cpp ends the process.
        params.n_batch = params.n_ubatch = max(self.step if self.splits else room, self.most)
        params.n_seq_max, params.kv_unified = self.most, True
        params.embeddings = True
        if self._runner.pooling <= C.LLAMA_POOLING_TYPE_NONE:
            params.pooling_type = C.LLAMA_POOLING_TYPE_MEAN
        params.n_threads = params.n_threads_batch = self._threads
        return params

    # Reading

    def read(self, text: str) -> list[int]:
        return self._bounded(self._runner.framed, text)

    def read_pair(self, query: str, document: str) -> list[int]:
        begin = query[: 8 * self.limit + 1024]
        if len(begin) < len(query) and len(tokens := self._runner.pair(begin, "")) > self.limit:
            return tokens
        return self._bounded(lambda text: self._runner.pair(query, text), document)

    def _bounded(self, tokens_of: Callable[[str], list[int]], text: str) -> list[int]:
        """Without a look at the rest of a text of which the beginning is too long: megabytes take seconds."""
        begin = text[: 8 * self.limit + 1024]
        tokens = tokens_of(begin)
        return tokens if len(begin) == len(text) or len(tokens) > self.limit else tokens_of(text)

    def checked(self, tokens: Sequence[int]) -> list[int]:
        return self._runner._checked(tokens)

    def cut(self, tokens: list[int]) -> list[int]:
        if len(tokens) <= self.limit:
            return tokens
        end = tokens[-1:] if tokens[-1] in self._runner.closing else []
        return tokens[: self.limit - len(end)] + end

    # Running

    def begin(self, room: int) -> None:
        if room > self._room:
            self._make(min(self.limit, max(self.step, 1 << (room - 1).bit_length())))
        if self._memory:
            C.llama_memory_clear(self._memory, False)

    def run(self, pieces: Sequence[tuple[Sequence[int], int]]) -> "list[array[float]]":
        status = C.llama_decode(self._context, self._batch(pieces))
        if status:
            cause = self._runner.log.cause()
            raise EngineError(f"llama.cpp cannot compute this (llama_decode: {status}): {cause}")
        return [self._values(slot) for slot in range(len(pieces))]

    def _batch(self, pieces: Sequence[tuple[Sequence[int], int]]) -> Any:
        """What it points to is kept until the next one."""
        tokens = [token for piece, _ in pieces for token in piece]
        places = [place for piece, start in pieces for place in range(start, start + len(piece))]
        slots = [self._slots[slot] for slot, (piece, _) in enumerate(pieces) for _ in piece]
        size = len(tokens)
        self._arrays = (
            (C.llama_token * size)(*tokens),
            (C.llama_pos * size)(*places),
            (ctypes.c_int32 * size)(*[1] * size),
            (ctypes.POINTER(C.llama_seq_id) * size)(*slots),
        )
        kinds = C.llama_token, C.llama_pos, ctypes.c_int32, ctypes.POINTER(C.llama_seq_id)
        pointers = map(ctypes.cast, self._arrays, map(ctypes.POINTER, kinds))
        first, *rest = pointers
        return C.llama_batch(size, first, None, *rest, None)

    def _values(self, slot: int) -> "array[float]":
        values = C.llama_get_embeddings_seq(self._context, slot)
        if not values:
            raise EngineError("llama.cpp computed no vector for this text")
        return array("f", ctypes.string_at(values, 4 * self.width))
