"""A conversation that goes on: what was said, and the engine that answers. Knows no commands.

A question is part of it once it is answered, be it in part. One that failed is kept aside, to be asked again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from mdl.chat import attachment
from mdl.chat.answer import Reply, answer, is_full, wait
from mdl.chat.session import Session, save
from mdl.chat.speaker import Speaker
from mdl.chat.terminal import Terminal
from mdl.engine.request import Format, Loaded, Message
from mdl.errors import Busy, MdlError, UsageError
from mdl.profiles import Profile


@dataclass(slots=True)
class Talk:
    """`open_model` gives an engine that loads what a reference names, and need not wait for it, and how that
    model wants to be used, as `profile` tells of the first. `model_names` are suggestions. `format` is what
    all answers are held to."""

    engine: Speaker
    session: Session
    open_model: Callable[[str], tuple[Speaker, Profile]]
    model_names: Callable[[], Iterable[str]] = tuple
    stats: bool = False
    attachments: tuple[tuple[str, str], ...] = ()
    unanswered: str = ""
    loaded: Loaded | None = None
    over: bool = False
    profile: Profile = field(default_factory=Profile)
    format: Format | None = None

    def ask(self, text: str, terminal: Terminal) -> Reply:
        """Draws the answer and remembers it. Raises what the engine does; the conversation is then as before.

        After Ctrl-C what was answered until then counts. Raises DiskError when the session cannot be kept.
        """
        question = Message("user", attachment.within(text, self.attachments))
        self.attachments, self.unanswered = (), question.content
        self.loaded = wait(self.engine, self.session.model, terminal)
        try:
            chat = replace(self.session.chat(question), format=self.format)
            reply = answer(self.engine, chat, terminal.sink())
        except UsageError as error:
            raise self._explained(error, question) from None
        if reply.text or reply.end == "stop":
            self.unanswered = ""
            self.session = self.session.plus(question, reply.message)
            self.keep()
        return reply

    def watch(self) -> None:
        """Waits until the model is loaded. Raises what that fails with."""
        self.loaded = self.engine.ready()

    def cannot_load(self) -> bool:
        """Whether there is nobody to talk to, as the first model could not be loaded."""
        try:
            self.loaded = self.loaded or self.engine.ready(0)
        except Busy:
            return False
        except MdlError:
            return True
        return False

    def keep(self) -> None:
        """Writes the session to its file, if it has one."""
        if self.session.name:
            save(self.session)

    def undo(self) -> str:
        """Takes back the last question, which it returns, and its answer. Raises UsageError without one."""
        self.session, question = self.session.undone()
        self.keep()
        return question

    def retry(self) -> str:
        """The question to ask again: one that failed, or else the last one, which is taken back."""
        return self.unanswered or self.undo()

    def switch(self, model: str) -> None:
        """Goes on with another model; with the old one when that cannot be loaded, and raises why.

        The old one makes room before the new one is in memory: two may be too much.
        """
        engine, profile = self.open_model(model)
        self.engine.close()
        try:
            self.loaded = engine.ready()
        except BaseException:
            engine.close()
            self.engine, _ = self.open_model(self.session.model)
            raise
        self.engine = engine
        self.session = self.session.moved(model, self.profile, profile)
        self.profile = profile

    def used(self) -> tuple[int, int]:
        """Tokens of the conversation so far, and how many there may be."""
        self.loaded = self.engine.ready()
        chat = self.session.chat()
        return (self.engine.count(chat) if chat.messages else 0), self.loaded.context

    def why_cut(self, reply: Reply) -> str:
        """Why an answer is not whole; "" if it is."""
        if reply.end == "interrupt":
            return "stopped" if reply.text else "stopped before the answer: /retry asks again"
        if self.loaded is not None and is_full(reply, self.loaded.context):
            return f"the context of {self.loaded.context:,} tokens is full: /undo or /clear makes room"
        return f"cut at max_tokens ({self.session.sampling.max_tokens})" if reply.end == "length" else ""

    def _explained(self, error: UsageError, question: Message) -> MdlError:
        """The error, with what to do in a conversation when it was the context that is too small."""
        known = self.loaded and self.loaded.context
        if self.loaded and known and self.engine.count(self.session.chat(question)) >= self.loaded.context:
            return UsageError(error.message, hint="/undo takes back the last question, /clear starts anew")
        return error
