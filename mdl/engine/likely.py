"""How likely a model holds each token, as it was before anything was cut off."""

from typing import Any

import numpy as np

from mdl.engine.request import Logprob
from mdl.engine.vocabulary import Vocabulary


class Likely:
    """The probabilities in one place of a batch, before anything is cut off. The logits may change after."""

    def __init__(self, vocabulary: Vocabulary, logits: Any, most: int) -> None:
        size = vocabulary.size
        self._vocabulary = vocabulary
        self._logits = np.ctypeslib.as_array(logits, (size,))
        row = self._logits.astype(np.float64)
        highest = row.max()
        self._sum = highest + np.log(np.exp(row - highest).sum())
        most = min(most, size)
        # The lower id goes first where two are the same, as for llama.cpp's greedy sampler.
        best = np.argpartition(-row, most - 1)[:most] if 0 < most < size else np.arange(most)
        order = sorted(best.tolist(), key=lambda token: (-row[token], token))
        self._top = tuple(
            (token, vocabulary.text_of(token), float(row[token] - self._sum)) for token in order
        )

    def of(self, token: int) -> Logprob:
        """Of the token that was taken."""
        logprob = float(self._logits[token] - self._sum)
        return Logprob(token, self._vocabulary.text_of(token), logprob, self._top)
