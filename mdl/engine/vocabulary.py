"""A model's tokens: from text to them, and back to bytes. Knows no context, and no requests."""

import ctypes
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

from mdl.engine.native import C
from mdl.errors import UnsupportedModel, UsageError

NO_TOKEN = -1
_TAG = re.compile(r"<[^\s<>]{1,60}>|\[/?[A-Z_]{2,60}\]")
_MARK = "\ue000"  # of private use: it means nothing in any text


class Vocabulary:
    """The vocabulary of a loaded model."""

    def __init__(self, model: Any) -> None:
        self.handle = C.llama_model_get_vocab(model)
        self.size: int = C.llama_vocab_n_tokens(self.handle)
        self._model = model
        self._pieces: list[bytes | Literal[False] | None] = [False] * self.size  # False: not asked for yet
        self._longest = 0
        self._read()

    def _read(self) -> None:
        vocab = self.handle
        kinds = [C.llama_vocab_get_attr(vocab, token) for token in range(self.size)]
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
        tokens = self.checked(prompt) if isinstance(prompt, tuple) else self.tokens(prompt)
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
        pieces = b"".join(map(self.text_of, self.checked(tokens)))
        return pieces.decode("utf-8", "replace").removeprefix(" " if self.adds_space else "")

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Raises UsageError for what is no token."""
        if wrong := [token for token in tokens if not 0 <= token < self.size]:
            raise UsageError(f"there is no token {wrong[0]}: the model knows {self.size:,}")
        return list(tokens)

    def _around(self, before: list[int], after: list[int]) -> list[int]:
        """Prefix, suffix, and then the middle, which is the answer: as models for code are trained."""
        if not self.infill:
            raise UnsupportedModel("the model was not made to fill in: it takes no suffix", field="suffix")
        prefix, suffix, middle = self._infill
        return [prefix, *before, suffix, *after, middle]

    def fewest(self, characters: int) -> int:
        """What a text of that length is at least: no token stands for more than the longest one does.

        Looks at each token the first time, which takes a moment where there are many.
        """
        if not self._longest:
            texts = (C.llama_vocab_get_text(self.handle, token) for token in range(self.size))
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
        end = [self._end] if C.llama_vocab_get_add_eos(self.handle) else []
        middle = [C.llama_vocab_sep(self.handle)] if C.llama_vocab_get_add_sep(self.handle) else []
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
        if continued and self.adds_space:
            # Behind a byte that merges with nothing, no space is put before the text.
            guard = self._tokenize("\x01", continued=False)
            return self._tokenize("\x01" + text, continued=False)[len(guard) :]
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text holds half of a character ({text[error.start]!a})") from None
        room = len(data) + 2
        tokens = (C.llama_token * room)()
        count = C.llama_tokenize(self.handle, data, len(data), tokens, room, framed, control)
        if count < 0:
            raise UsageError("the text cannot be turned into tokens")
        return list(tokens[:count])

    def continued(self, data: bytes) -> list[int]:
        """Of bytes that come behind others."""
        return self._tokenize(data.decode("utf-8", "replace"), continued=True)

    def piece(self, token: int) -> bytes | None:
        """The bytes of a token of an answer; None for those that end it."""
        piece = self._pieces[token]
        if piece is False:
            ends = C.llama_vocab_is_eog(self.handle, token)
            piece = self._pieces[token] = None if ends else self._bytes(token, special=False)
        return piece

    def show(self, tags: Iterable[str]) -> None:
        """Of the control tokens, which say nothing, those with these texts are shown in answers."""
        for tag in tags:
            if tag in self.controls:
                self._pieces[self.controls[tag]] = tag.encode()

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return [token for token in range(self.size) if C.llama_vocab_is_eog(self.handle, token)]

    def _text(self, token: int) -> str:
        return self._bytes(token, special=True).decode("utf-8", "replace")

    def _bytes(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = C.llama_token_to_piece(self.handle, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def text_of(self, token: int) -> bytes:
        """The bytes of any token, also of those that say nothing in an answer."""
        return self._bytes(token, special=True)
