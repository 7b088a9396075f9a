"""The process that holds one model: a loop of schedule -> run -> deliver. Knows only its parent, over pipes.

It ends when its standard input does, by the hand of the thread that reads it, even in the middle of a step.
"""

import faulthandler
import json
import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple

from mdl.engine import wire
from mdl.engine.answer import Answer
from mdl.engine.embedding import Embeddings
from mdl.engine.prefix import Copy, Cut, Own, Shared
from mdl.engine.preparing import Preparing
from mdl.engine.request import (
    Chat,
    Completion,
    EngineFiles,
    EngineSettings,
    Format,
    Logprob,
    Sampling,
    ToolCall,
)
from mdl.engine.scheduler import Scheduler
from mdl.engine.sequence import Sequence
from mdl.engine.template import (
    CHATML,
    CHATML_END,
    REASONING_TAGS,
    Prompt,
    Reasoning,
    Template,
    begun,
    import_jinja,
)
from mdl.engine.tools import TAGS, Calls, Form, check, form_of, grammar, open_grammar
from mdl.errors import EngineError, MdlError, TooLong, UnsupportedModel, UsageError

TEMPLATE_SECONDS = 3.0
TEMPLATE_MEMORY = 1 << 30
# Nobody reads faster, and a message for each token would cost a tiny model a tenth of its speed.
FLUSH_SECONDS = 0.008
READING = 0.1  # of the time of a step, for prompts that arrive before the next one
MOST_TEMPLATES = 8  # that requests brought, kept compiled
BUG = 70  # exit code; 1 is what the watchdog of templates ends with


class Pipes:
    """Lines from the parent, and to it. What libraries print goes to stderr, so that it breaks no message."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[wire.Wire] = SimpleQueue()
        self._out = os.dup(1)
        os.dup2(2, 1)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            with os.fdopen(0, "rb", closefd=False) as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # the parent was killed in the middle of a message
                    self.inbox.put(wire.parse(line))
        except Exception:  # noqa: BLE001 - nobody would hear the parent any more
            with suppress(OSError):  # nor may there be anybody who reads this
                traceback.print_exc()
            os._exit(BUG)
        os._exit(0)  # the parent has closed the pipe, or is no more

    def send(self, **message: Any) -> None:
        data = memoryview(wire.line(message))
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            os._exit(0)  # nobody is there to read


class _Unprepared(Exception):
    """A form of answers that was not asked for before."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format


class Writing(NamedTuple):
    """How prompts are written, and calls in what comes back, if any."""

    template: Template
    calls: Form | None


class Worker:
    """The requests that one model answers."""

    def __init__(self, pipes: Pipes, runner: Any, settings: EngineSettings, template: str | None) -> None:
        self.pipes = pipes
        self.runner = runner
        self.vocabulary = runner.vocabulary
        self.context: int = runner.context
        source = template if template is not None else runner.template
        self.own = self.writing(source or CHATML)
        self.writings: dict[str, Writing] = {}
        # A model without a template may not know the end of a turn in ChatML as a token: then it is text.
        self.stop = () if source or CHATML_END in self.vocabulary.controls else (CHATML_END,)
        self.vocabulary.show((*TAGS, *(tag for pair in REASONING_TAGS for tag in pair)))
        cache = Shared(runner.slots, runner.cells, runner.whole) if runner.shared else Own(runner.slots)
        self.scheduler: Scheduler[Sequence] = Scheduler(settings.parallel, runner.batch, cache)
        self.sequences: dict[int, Sequence] = {}
        self.unsent: dict[int, Sequence] = {}
        self.preparing: set[int] = set()
        self.forms = Preparing(self.find_out, self.preparing.__contains__)
        self.settings = settings
        self.embeddings: Embeddings | None = None  # made when somebody asks for it
        self.flushed = 0.0
        self.took = 0.0  # seconds, of the last step

    def serve(self) -> None:
        """For ever: what arrives, then a step."""
        inbox = self.pipes.inbox
        while True:
            begun = perf_counter()
            while not self.busy or not inbox.empty():
                message = inbox.get()
                self.handle(message)
                taken = perf_counter() - begun
                if "cancel" not in message and "embed" not in message and taken > READING * self.took:
                    break  # prompts that arrive at once start together, but hold up no answer for long
            begun = perf_counter()
            if self.sequences:
                self.step()
            if self.embeddings is not None and self.embeddings.busy:
                self.embeddings.step()
            self.took = perf_counter() - begun

    @property
    def busy(self) -> bool:
        return bool(self.sequences) or (self.embeddings is not None and self.embeddings.busy)

    # What is asked

    def handle(self, message: wire.Wire) -> None:
        if "cancel" in message:
            self.cancel(message["cancel"])
            return
        request = message["id"]
        if "again" in message:
            if request not in self.preparing:
                return
            self.preparing.discard(request)
        try:
            if error := message.get("again"):
                raise error
            for what, answer in _ASKED.items():
                if what in message:
                    answer(self, request, message[what])
        except _Unprepared as missing:
            self.prepare(message, missing.format)
        except MdlError as error:
            self.pipes.send(id=request, error=wire.pack_error(error))

    def prepare(self, message: wire.Wire, format: Format) -> None:
        """What a form takes, beside the answers of others; then the message comes again, or an error."""
        self.preparing.add(message["id"])
        self.forms.add(message["id"], format, lambda error: self.pipes.inbox.put(message | {"again": error}))

    def find_out(self, format: Format, patient: bool) -> bool:
        try:
            found: bool = self.runner.prepare(format, patient)
        except Exception:  # noqa: BLE001 - the request would wait for ever
            traceback.print_exc()
            os._exit(BUG)
        return found

    def constraint(self, format: Format) -> Any:
        """Raises UsageError for a form that cannot be kept to."""
        if not self.runner.knows(format):
            raise _Unprepared(format)
        return self.runner.constraint(format)

    def chat(self, request: int, asked: Any) -> None:
        chat = wire.unpack(Chat, asked)
        with _about("messages"):
            self.check_size(chat)
            prompt = self.render(request, chat)
            tokens = self.vocabulary.tokenize(prompt.pieces)
            with _about("tools"):
                form = self.form(chat)
            self.start(request, tokens, self.answer(chat, prompt), chat.sampling, format=form)

    def writing(self, source: str) -> Writing:
        texts = {*self.vocabulary.controls, *self.vocabulary.tags}
        return Writing(Template(source, texts, self.vocabulary.named), form_of(source))

    def of(self, chat: Chat) -> Writing:
        """The model's own, or that of the template that the request brings."""
        if not chat.template or chat.template == self.own.template.source:
            return self.own
        if chat.template not in self.writings:
            if len(self.writings) >= MOST_TEMPLATES:
                self.writings.clear()
            self.writings[chat.template] = self.writing(chat.template)
        return self.writings[chat.template]

    def answer(self, chat: Chat, prompt: Prompt) -> Answer:
        """How to read what the model says."""
        reasoning = Reasoning(prompt.text, spaced=self.vocabulary.adds_space, begun=begun(chat, prompt))
        form = self.of(chat).calls
        calls = Calls(form, not chat.parallel_calls) if chat.tools and form else None
        return Answer(reasoning, chat.sampling.stop + self.stop, calls)

    def form(self, chat: Chat) -> Format | None:
        """What the answer is held to. Raises what `tools.open_grammar` does."""
        controls, parallel, calls = self.vocabulary.controls, chat.parallel_calls, self.of(chat).calls
        thoughts = self.thoughts(chat)
        if chat.continues and chat.messages[-1].content and (chat.format or chat.must_call):
            raise UsageError("an answer that was begun cannot be held to a form", field="format")
        if chat.must_call:
            # JSON is what the text has to be, of which there is none then; a grammar would be for all of it.
            if chat.format is not None and chat.format.kind not in ("json", "schema"):
                raise UsageError(
                    "an answer that has to be a call cannot keep to a grammar too", field="grammar"
                )
            return grammar(calls, chat.tools, chat.only, parallel, controls, thoughts)
        strict = any(tool["function"].get("strict") for tool in chat.tools)
        is_json = chat.format is not None and chat.format.kind in ("json", "schema")
        # Calls of a form that is known are held to it even where nothing has to be called: models misspell.
        if strict or (chat.tools and (calls or chat.format)) or (thoughts and is_json):
            return open_grammar(calls, chat.tools, parallel, controls, chat.format, thoughts)
        return chat.format

    def thoughts(self, chat: Chat) -> tuple[str, ...]:
        """The tags that reasoning before the answer may begin with: those of the template, unless the request
        decides."""
        if chat.thinking is False:
            return ()
        source = self.of(chat).template.source
        return tuple(start for start, _ in REASONING_TAGS if chat.thinking or start in source)

    def completion(self, request: int, asked: Any) -> None:
        with _about("prompt"):
            self.complete(request, self.around(request, wire.unpack(Completion, asked)))

    def around(self, request: int, completion: Completion) -> Completion:
        """With the prompt as its template writes it."""
        if not completion.template or not isinstance(completion.prompt, str):
            return completion
        self.pipes.send(rendering=request)
        with _bounded_time(), _bounded_memory():
            prompt = self.writing(completion.template).template.around(completion.prompt)
        return replace(completion, prompt=prompt)

    def complete(self, request: int, completion: Completion) -> None:
        prompt, suffix = completion.prompt, completion.suffix or ""
        tokens = 0 if isinstance(prompt, str) else len(prompt)
        characters = (len(prompt) if isinstance(prompt, str) else 0) + len(suffix)
        self.check_length(tokens + self.runner.fewest_tokens(characters), "at least ")
        answer = Answer(None, completion.sampling.stop)
        sequence = self.start(
            request,
            self.vocabulary.prompt(prompt, completion.suffix),
            answer,
            completion.sampling,
            echoes=completion.echo,
            answers=completion.answers,
            format=completion.format,
        )
        if completion.echo:
            answer.say(prompt if isinstance(prompt, str) else self.vocabulary.text(prompt))
        if sequence.echoes:
            sequence.tell(Logprob(sequence.tokens[0], self.first_piece(sequence.tokens[0], prompt), None))

    def first_piece(self, token: int, prompt: str | tuple[int, ...]) -> bytes:
        """The bytes of the first token of a prompt: none if the model's own beginning was put before it."""
        piece: bytes = self.vocabulary.text_of(token)
        text = piece.decode("utf-8", "replace")
        added = isinstance(prompt, str) and text in self.vocabulary.controls and not prompt.startswith(text)
        return b"" if added else piece

    def start(
        self,
        request: int,
        tokens: list[int],
        answer: Answer,
        sampling: Sampling,
        *,
        echoes: bool = False,
        answers: bool = True,
        format: Format | None = None,
    ) -> Sequence:
        """Puts it into the queue. Raises UsageError for what cannot be asked."""
        if not tokens:
            raise UsageError("the prompt is empty")
        self.check_length(len(tokens))
        longest = sampling.max_tokens or self.context
        with _about("format"):
            constraint = None if format is None else self.constraint(format)
        with _about("logit_bias"):
            sampler = self.runner.sampler(sampling)
        sequence = Sequence(
            request,
            tokens,
            min(self.context, len(tokens) + (longest if answers else 0)),
            answer,
            constraint=constraint,
            logprobs=sampling.logprobs,
            echoes=echoes,
            # What was computed in other steps differs in the last digits, which can be another word.
            fresh=sampling.seed is not None,
            forbids="logit_bias" if sampling.logit_bias else "ignore_eos" if sampling.ignore_eos else "",
            sampler=sampler,
        )
        self.sequences[request] = sequence
        self.scheduler.add(sequence)
        return sequence

    def count(self, request: int, asked: Any) -> None:
        prompt = self.render(request, wire.unpack(Chat, asked))
        self.pipes.send(id=request, result=len(self.vocabulary.tokenize(prompt.pieces)))

    def render_only(self, request: int, asked: Any) -> None:
        self.pipes.send(id=request, result=self.render(request, wire.unpack(Chat, asked)).text)

    def prompt(self, request: int, asked: Any) -> None:
        chat = wire.unpack(Chat, asked)
        with _about("messages"):
            self.check_size(chat)
            prompt = self.render(request, chat)
            self.pipes.send(id=request, result=self.vocabulary.tokenize(prompt.pieces))

    def tokenize(self, request: int, asked: Any) -> None:
        text, begun = asked
        with _about("text"):
            tokens = self.vocabulary.prompt(text, None) if begun else self.vocabulary.tokens(text)
        self.pipes.send(id=request, result=tokens)

    def detokenize(self, request: int, asked: Any) -> None:
        with _about("tokens"):
            self.pipes.send(id=request, result=self.vocabulary.text(asked))

    def embed(self, request: int, asked: Any) -> None:
        if self.embeddings is None:
            from mdl.engine.vectors import Vectors

            self.embeddings = Embeddings(Vectors(self.runner, self.settings), self.pipes.send)
        self.embeddings.embed(request, asked)

    def rank(self, *_: Any) -> None:
        raise UnsupportedModel("this model writes answers: it was not made to rank", hint="name a reranker")

    def check_size(self, chat: Chat) -> None:
        """Raises TooLong for what cannot fit. Megabytes would hold up the answers of others for seconds, to
        be refused in the end; and each message and each call takes a token at least."""
        turns = len(chat.messages) + sum(1 for _ in _calls(chat))
        self.check_length(max(turns, self.runner.fewest_tokens(_characters(chat))), "at least ")

    def check_length(self, prompt: int, about: str = "") -> None:
        """Raises TooLong for a prompt of so many tokens that no answer would have room behind it."""
        if prompt >= self.context:
            raise TooLong(
                f"the prompt has {about}{prompt:,} tokens, and the context has room for {self.context:,} "
                "together with the answer",
                hint="shorten the conversation, or load the model with a larger context (--ctx)",
            )

    def render(self, request: int, chat: Chat) -> Prompt:
        """The prompt. The parent hears of it first: it may be the last that this process does."""
        check(chat.tools)
        self.pipes.send(rendering=request)
        with _bounded_time(), _bounded_memory():
            return self.of(chat).template.render(chat)

    def cancel(self, request: int) -> None:
        self.preparing.discard(request)
        if sequence := self.sequences.get(request):
            self.release(sequence)
        elif self.embeddings is not None:
            self.embeddings.cancel(request)

    def release(self, sequence: Sequence) -> None:
        """Gives back what a finished or cancelled request holds."""
        del self.sequences[sequence.request]
        self.unsent.pop(sequence.request, None)
        self.scheduler.remove(sequence)
        self.runner.free(sequence.sampler)

    # A step

    def step(self) -> None:
        work = self.scheduler.schedule()
        self.move()
        if self.unsent and len(work) != sum(step.amount for step in work):
            self.flush()  # a prompt takes long; what is ready should not wait for it
        try:
            sampled = self.runner.run(work)
        except EngineError as error:
            self.lose(error)
            return
        if sampled is None:
            self.give_way()
        else:
            self.scheduler.advance(work)
            self.deliver(work, sampled)

    def move(self) -> None:
        """Does in llama.cpp's cache what was decided about it."""
        moves = self.scheduler.cache.moves
        for move in moves:
            if isinstance(move, Copy):
                self.runner.copy(*move)
            elif isinstance(move, Cut):
                self.runner.cut(*move)
            else:
                self.runner.forget(move.slot)
        moves.clear()

    def give_way(self) -> None:
        """llama.cpp has no room where the scheduler saw some: less is there from now on, and the youngest
        waits, or fails if it is alone."""
        cache = self.scheduler.cache
        if cache.clear():
            return  # what was kept may have been in the way
        if len(self.scheduler.running) == 1:
            error = EngineError("the model's cache has no room for this request")
            self.fail(self.scheduler.running[0], error)
            return
        cache.cells = cache.busy - 1
        self.scheduler.preempt()

    def lose(self, error: MdlError) -> None:
        """Nothing is in llama.cpp's cache any more."""
        for sequence in self.scheduler.reset():
            self.fail(sequence, error)
        self.scheduler.cache.moves.clear()

    def fail(self, sequence: Sequence, error: MdlError) -> None:
        self.release(sequence)
        self.pipes.send(id=sequence.request, error=wire.pack_error(error))

    def deliver(self, work: list[Any], sampled: list[int]) -> None:
        tokens = iter(sampled)
        piece = self.vocabulary.piece
        for sequence, _ in work:
            if sequence.computed < len(sequence.tokens):
                continue
            token = next(tokens)
            ended = sequence.failure is None and (
                sequence.accept(token, piece(token)) or (sequence.constraint and self.force(sequence))
            )
            if sequence.failure is not None:
                self.fail(sequence, sequence.failure)
            elif ended:
                self.finish(sequence)
            else:
                self.unsent[sequence.request] = sequence
        if self.unsent and perf_counter() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def force(self, sequence: Sequence) -> bool:
        """What a form leaves no choice about is not asked of the model, unless its opinion is wanted. True
        when that ends the answer."""
        constraint = sequence.constraint
        if sequence.answer.thinks:
            return False
        try:
            if constraint.ended:
                sequence.complete()
                return True
            for token in constraint.forced() if sequence.logprobs is None else ():
                constraint.accept(token)
                if sequence.accept(token, self.vocabulary.piece(token)):
                    return True
        except MdlError as error:  # of this answer alone
            sequence.failure = error
        return False

    def finish(self, sequence: Sequence) -> None:
        self.release(sequence)
        self.pipes.send(done=wire.pack_done(sequence.request, sequence.last()))

    def flush(self) -> None:
        """One message with what all the answers have become."""
        deltas = [wire.pack_piece(request, sequence.drain()) for request, sequence in self.unsent.items()]
        self.unsent.clear()
        self.flushed = perf_counter()
        if deltas := [delta for delta in deltas if delta[1] or delta[2] or delta[3:]]:
            self.pipes.send(deltas=deltas)


_ASKED = {
    "chat": Worker.chat,
    "completion": Worker.completion,
    "count": Worker.count,
    "prompt": Worker.prompt,
    "render": Worker.render_only,
    "tokenize": Worker.tokenize,
    "detokenize": Worker.detokenize,
    "embed": Worker.embed,
    "rank": Worker.rank,
}


class Embedder:
    """The requests of a model that was made to embed, or to rank."""

    def __init__(self, pipes: Pipes, runner: Any, settings: EngineSettings) -> None:
        from mdl.engine.vectors import Vectors

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
            with _about("text"):
                tokens = self.vocabulary.framed(text) if begun else self.vocabulary.tokens(text)
            self.pipes.send(id=request, result=tokens)
        elif "detokenize" in message:
            with _about("tokens"):
                self.pipes.send(id=request, result=self.vocabulary.text(message["detokenize"]))
        elif self.runner.task == "embed" and "embed" in message:
            self.embeddings.embed(request, message["embed"])
        elif self.runner.task == "rank" and "rank" in message:
            self.embeddings.rank(request, message["rank"])
        else:
            raise UnsupportedModel(*_MADE_FOR[self.runner.task])


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


def _characters(chat: Chat) -> int:
    """Of what templates write into the prompt; reasoning, which many leave out, is not counted."""
    said = sum(len(message.content) for message in chat.messages)
    called = sum(len(call.name) + _shortest(call.arguments) for call in _calls(chat))
    return said + called + (len(json.dumps(chat.tools, ensure_ascii=False)) if chat.tools else 0)


def _shortest(arguments: str) -> int:
    """Characters of JSON as templates may write it anew: without white space, and nothing by its number."""
    return len(re.sub(r"\\u[0-9a-fA-F]{4}|\s+", "x", arguments)) // 2


def _calls(chat: Chat) -> Iterator[ToolCall]:
    return (call for message in chat.messages for call in message.tool_calls)


@contextmanager
def _about(field: str) -> Iterator[None]:
    """What is refused inside is refused for this field, unless it says another one."""
    try:
        yield
    except UsageError as error:
        error.field = error.field or field
        raise


@contextmanager
def _bounded_time() -> Iterator[None]:
    """Ends the process, exit code 1, when the block takes too long. Not by a signal handler or a thread of
    Python: 9**(9**9) lets neither run."""
    faulthandler.dump_traceback_later(TEMPLATE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """What the block may allocate ends with a MemoryError. Not on Windows, which has no such limit, and not
    on macOS, which does not keep it; there the length of the prompt and the time are what bounds it."""
    try:
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = size + TEMPLATE_MEMORY
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _be_the_first_to_go() -> None:
    """When memory runs out, Linux should end this process and not its parent."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who cancels a request
    os.putenv("GGML_NO_BACKTRACE", "1")  # it would start a debugger
    pipes = Pipes()
    _be_the_first_to_go()
    try:
        worker = load(pipes)
    except MdlError as error:
        pipes.send(failed=wire.pack_error(error))
        return
    try:
        worker.serve()
    except Exception:  # noqa: BLE001 - it ends here, whatever it is
        traceback.print_exc()
        os._exit(BUG)


def load(pipes: Pipes) -> Worker | Embedder:
    """Begins to import before it is known what to load."""
    from mdl.engine.devices import usable_gpus
    from mdl.engine.llama import Runner

    threading.Thread(target=import_jinja, daemon=True).start()  # while the model is loaded, which is C
    pipes.send(gpus=usable_gpus())
    files, settings = pipes.inbox.get()["load"]
    files, settings = wire.unpack(EngineFiles, files), wire.unpack(EngineSettings, settings)
    runner = Runner(files, settings)
    worker: Worker | Embedder
    if runner.task == "generate":
        worker = Worker(pipes, runner, settings, files.template)
    else:
        worker = Embedder(pipes, runner, settings)
    pipes.send(loaded=wire.pack(runner.loaded))
    return worker


if __name__ == "__main__":
    main()
