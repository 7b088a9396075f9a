"""The requests of a model that was made to embed, or to rank: a loop of what arrives, and steps."""

from typing import Any

from mdl.engine import wire
from mdl.engine.embedding import Embeddings
from mdl.engine.pipes import Pipes
from mdl.engine.request import EngineSettings
from mdl.engine.vectors import Vectors
from mdl.errors import MdlError, UnsupportedModel, about

_MADE_FOR = {
    "embed": (
        "this is an embedding model: it writes no answers, and ranks nothing",
        "ask it for embeddings (/v1/embeddings)",
    ),
    "rank": (
        "this is a reranker: it writes no answers, and has no embeddings",
        "ask it to rank documents (/v1/rerank)",
    ),
}


class Embedder:
    """The requests of a model that was made to embed, or to rank."""

    def __init__(self, pipes: Pipes, runner: Any, settings: EngineSettings) -> None:
        self.pipes = pipes
        self.runner = runner
        self.vocabulary = runner.vocabulary
        self.embeddings = Embeddings(Vectors(runner, settings), pipes.send)

    def serve(self) -> None:
        """For ever: what arrives, then a step."""
        inbox = self.pipes.inbox
        while True:
            while not self.embeddings.busy or not inbox.empty():
                self.handle(inbox.get())
            self.embeddings.step()

    def handle(self, message: wire.Wire) -> None:
        if "cancel" in message:
            self.embeddings.cancel(message["cancel"])
            return
        try:
            self.answer(message["id"], message)
        except MdlError as error:
            self.pipes.send(id=message["id"], error=wire.pack_error(error))

    def answer(self, request: int, message: wire.Wire) -> None:
        if "tokenize" in message:
            text, begun = message["tokenize"]
            with about("text"):
                tokens = self.vocabulary.framed(text) if begun else self.vocabulary.tokens(text)
            self.pipes.send(id=request, result=tokens)
        elif "detokenize" in message:
            with about("tokens"):
                self.pipes.send(id=request, result=self.vocabulary.text(message["detokenize"]))
        elif self.runner.task == "embed" and "embed" in message:
            self.embeddings.embed(request, message["embed"])
        elif self.runner.task == "rank" and "rank" in message:
            self.embeddings.rank(request, message["rank"])
        else:
            raise UnsupportedModel(*_MADE_FOR[self.runner.task])
