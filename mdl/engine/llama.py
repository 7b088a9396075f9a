"""llama.cpp behind a few calls: load a model, run a step, sample. Knows no requests, pipes or templates.

What makes llama.cpp end the process (values out of range, a sampler that is NULL) is checked before it gets
there.
"""

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mdl.engine.devices import devices, physical_cores, physical_memory
from mdl.engine.modelfile import check_readable, read_header, refuse_what_does_not_answer, why_not
from mdl.engine.native import C, Log, string
from mdl.engine.request import EngineFiles, EngineSettings, Format, Loaded, Sampling, Sizes, Task
from mdl.engine.samplers import Samplers
from mdl.engine.vocabulary import NO_TOKEN, Vocabulary
from mdl.errors import EngineError, MdlError, UnsupportedModel, UsageError

if TYPE_CHECKING:
    from mdl.engine.likely import Likely

BF16 = 30  # of ggml.h; the package has no name for it
TINY = 50_000_000  # parameters: below this a step is too short for a second thread to pay


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
        self.model = self._load_model(files.model, settings)
        refuse_what_does_not_answer(self.model, files.model)
        parameters = C.llama_model_n_params(self.model)
        self.threads = settings.threads or (1 if parameters < TINY else physical_cores())
        self.whole = C.llama_model_is_recurrent(self.model) or C.llama_model_is_hybrid(self.model)
        self.context, self.cells, self.shared = self._sizes(settings)
        self._adapters = self._load_adapters(files.adapters)
        self.pooling = pooling(self._meta)
        self.task: Task = purpose(self.pooling, self._meta)
        if self.task == "generate":
            self._open(settings)
        if self.task != "generate":
            self.cells = self.context
        self.vocabulary = Vocabulary(self.model)
        self._samplers = Samplers(self.vocabulary, self.context)
        self._grammars: Any = None
        self._preparing = Lock()
        self._echoing = False
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
        trained = C.llama_model_n_ctx_train(self.model)
        if settings.context is not None and settings.context > trained > 0:
            raise UsageError(
                f"a context of {settings.context:,} tokens is more than the model learned, {trained:,}",
                hint=f"use a context of at most {trained}",
            )
        return settings.sizes(trained, self._cell_size(), physical_memory(), self.whole)

    def _cell_size(self) -> int:
        """Bytes that a token takes in the cache, at most."""
        architecture = self._meta("general.architecture")
        head = C.llama_model_n_embd(self.model) // max(1, C.llama_model_n_head(self.model))
        lengths = (self._meta(f"{architecture}.attention.{name}_length") for name in ("key", "value"))
        width = sum(int(length) if length.isdecimal() else head for length in lengths)
        layers, heads = C.llama_model_n_layer(self.model), max(1, C.llama_model_n_head_kv(self.model))
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
        context = C.llama_init_from_model(self.model, params)
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
        adapter = C.llama_adapter_lora_init(self.model, os.fsencode(path))
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

    def _describe(self, files: EngineFiles, seconds: float) -> Loaded:
        gpu = C.llama_supports_gpu_offload()
        return Loaded(
            architecture=self._meta("general.architecture"),
            description=string(C.llama_model_desc, self.model).replace(" ?B ", " "),  # of no known size
            size=C.llama_model_size(self.model),
            parameters=C.llama_model_n_params(self.model),
            layers=C.llama_model_n_layer(self.model),
            gpu_layers=self.log.offloaded if gpu else 0,
            devices=devices(),
            vocabulary=self.vocabulary.size,
            trained_context=C.llama_model_n_ctx_train(self.model),
            context=self.context,
            cells=self.cells,
            threads=self.threads,
            template="given" if files.template is not None else "model" if self.template else "default",
            seconds=seconds,
            task=self.task,
            width=1 if self.task == "rank" else C.llama_model_n_embd_out(self.model),
            infill=self.vocabulary.infill,
        )

    def _meta(self, key: str) -> str:
        return string(C.llama_model_meta_val_str, self.model, key.encode())

    @property
    def template(self) -> str | None:
        """The model's own chat template."""
        template = C.llama_model_chat_template(self.model, None)
        return template.decode("utf-8", "replace") if template else None

    # Answers

    def sampler(self, sampling: Sampling) -> int:
        """What chooses the next token, to be given back with `free`. Raises UsageError as `Samplers` does."""
        return self._samplers.chain(sampling)

    def free(self, sampler: int) -> None:
        C.llama_sampler_free(sampler)

    def fewest_tokens(self, characters: int) -> int:
        """What a text of that length is at least, if that may be too much for the context; else 0."""
        return 0 if characters < self.context else self.vocabulary.fewest(characters)

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

        pieces = [self.vocabulary.text_of(token) for token in range(self.vocabulary.size)]
        return Grammars(pieces, self.vocabulary.controls, self.vocabulary.ends, self.vocabulary.continued)

    def constraint(self, format: Format) -> Any:
        """What holds an answer to a form. Raises UsageError for one that is none."""
        return self._grammars.constraint(format)

    def run(self, work: Sequence[tuple[Any, int]]) -> list[int] | None:
        """Computes the next n tokens of each (sequence, n). Returns a new token for each sequence of which
        nothing is left to compute, NO_TOKEN where it has a `failure`; or None when the cache has no room.

        Raises EngineError when llama.cpp cannot compute; then the cache is empty.
        """
        places = self._fill(work)
        status = C.llama_decode(self._context, self._batch)
        if status == 0:
            if self._echoing:
                self._echo(work)
            sample, context = C.llama_sampler_sample, self._context
            return [
                sample(sequence.sampler, context, place) if sequence.plain else self._sample(sequence, place)
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

    def _sample(self, sequence: Any, place: int) -> int:
        """The next token of one that is held to a form, or whose logprobs are told."""
        logits = C.llama_get_logits_ith(self._context, place)
        likely = None if sequence.logprobs is None else self._likely(logits, sequence.logprobs)
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
                    likely = self._likely(logits, sequence.logprobs or 0)
                    sequence.tell_prompt(position, likely.of(sequence.tokens[position]))
            end += count

    def _likely(self, logits: Any, most: int) -> "Likely":
        from mdl.engine.likely import Likely  # which imports numpy

        return Likely(self.vocabulary, logits, most)

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


def _cache_type(name: str | None) -> int:
    if name == "bf16":
        return BF16
    return int(getattr(C, f"GGML_TYPE_{(name or 'f16').upper()}"))


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
