"""How the next token is chosen: the chain of llama.cpp's samplers that a request asks for."""

import ctypes
import os
from collections.abc import Iterable
from math import inf
from typing import Any

from mdl.engine.native import C
from mdl.engine.request import Sampling
from mdl.engine.vocabulary import Vocabulary
from mdl.errors import EngineError, MdlError, UsageError

FORBIDS = -100.0  # a bias of so much, as in OpenAI's API


class Samplers:
    """Chains for one vocabulary, and for a context of so many tokens."""

    def __init__(self, vocabulary: Vocabulary, context: int) -> None:
        self._vocabulary = vocabulary
        self._context = context

    def chain(self, sampling: Sampling) -> int:
        """A chain that chooses the next token. It is the caller's to free.

        Raises UsageError for a bias of a token that the vocabulary does not have.
        """
        chain: int = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        try:
            for link in self._links(sampling):
                if not link:
                    raise EngineError("llama.cpp refuses the sampling parameters")
                C.llama_sampler_chain_add(chain, link)
        except MdlError:
            C.llama_sampler_free(chain)
            raise
        return chain

    def _links(self, sampling: Sampling) -> Iterable[Any]:
        """In llama.cpp's own order: biases, penalties, what is cut off, then temperature and choice."""
        if sampling.logit_bias:
            yield self._biases(sampling.logit_bias)
        if sampling.ignore_eos:
            yield self._biases(tuple((token, FORBIDS) for token in self._vocabulary.ends))
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
        vocabulary = self._vocabulary.size
        if unknown := [token for token, _ in biases if token >= vocabulary]:
            raise UsageError(f"logit_bias has token {unknown[0]}, and the model knows {vocabulary:,}")
        entries = (C.llama_logit_bias * len(biases))(
            *((token, bias if bias > FORBIDS else -inf) for token, bias in biases)
        )
        return C.llama_sampler_init_logit_bias(vocabulary, len(biases), entries)

    def _penalties(self, sampling: Sampling) -> Iterable[Any]:
        vocabulary = self._vocabulary.size
        if sampling.repeat_penalty != 1:
            last = self._back(sampling.repeat_last_n)
            yield C.llama_sampler_init_penalties(vocabulary, last, sampling.repeat_penalty, 0.0, 0.0)
        if sampling.frequency_penalty or sampling.presence_penalty:
            frequency, presence = sampling.frequency_penalty, sampling.presence_penalty
            yield C.llama_sampler_init_penalties(vocabulary, self._context, 1.0, frequency, presence)
        if sampling.dry_multiplier:
            yield self._dry(sampling)

    def _back(self, last: int) -> int:
        return min(last, self._context) if last >= 0 else self._context

    def _dry(self, sampling: Sampling) -> Any:
        breakers = [text.encode() for text in sampling.dry_sequence_breakers]
        return C.llama_sampler_init_dry(
            self._vocabulary.handle,
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
        return C.llama_sampler_init_mirostat(self._vocabulary.size, seed, tau, eta, 100)


def seed_of(sampling: Sampling) -> int:
    """32 bits, as llama.cpp takes them; the value that means "any" to llama.cpp is avoided."""
    seed = int.from_bytes(os.urandom(4)) if sampling.seed is None else sampling.seed
    return seed % 0xFFFFFFFF
