"""The process that holds one model: a loop of schedule -> run -> deliver. Knows only its parent, over pipes.

It ends when its standard input does, by the hand of the thread that reads it, even in the middle of a step.
"""

import os
import signal
import threading
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mdl.engine import wire
from mdl.engine.answer import Answer
from mdl.engine.embedding import Embeddings
from mdl.engine.pipes import BUG, Pipes
from mdl.engine.prefix import Copy, Cut, Own, Shared
from mdl.engine.preparing import Preparing
from mdl.engine.prompts import Prompts, characters, turns
from mdl.engine.request import Chat, Completion, EngineFiles, EngineSettings, Format, Logprob, Sampling
from mdl.engine.scheduler import Scheduler
from mdl.engine.sequence import Sequence
from mdl.engine.template import Prompt, import_jinja
from mdl.engine.tools import check
from mdl.errors import EngineError, MdlError, TooLong, UnsupportedModel, UsageError, about

if TYPE_CHECKING:
    from mdl.engine.embedder import Embedder

# Nobody reads faster, and a message for each token would cost a tiny model a tenth of its speed.
FLUSH_SECONDS = 0.008
READING = 0.1  # of the time of a step, for prompts that arrive before the next one


class _Unprepared(Exception):
    """A form of answers that was not asked for before."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format


class Worker:
    """The requests that one model answers."""

    def __init__(self, pipes: Pipes, runner: Any, settings: EngineSettings, template: str | None) -> None:
        self.pipes = pipes
        self.runner = runner
        self.vocabulary = runner.vocabulary
        self.context: int = runner.context
        self.prompts = Prompts(runner.vocabulary, template if template is not None else runner.template)
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
        with about("messages"):
            self.check_size(chat)
            prompt = self.render(request, chat)
            tokens = self.vocabulary.tokenize(prompt.pieces)
            with about("tools"):
                form = self.prompts.form(chat)
            self.start(request, tokens, self.prompts.answer(chat, prompt), chat.sampling, format=form)

    def completion(self, request: int, asked: Any) -> None:
        with about("prompt"):
            completion = wire.unpack(Completion, asked)
            if completion.template and isinstance(completion.prompt, str):
                self.pipes.send(rendering=request)
                prompt = self.prompts.around(completion.prompt, completion.template)
                completion = replace(completion, prompt=prompt)
            self.complete(request, completion)

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
        with about("format"):
            constraint = None if format is None else self.constraint(format)
        with about("logit_bias"):
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
        with about("messages"):
            self.check_size(chat)
            prompt = self.render(request, chat)
            self.pipes.send(id=request, result=self.vocabulary.tokenize(prompt.pieces))

    def tokenize(self, request: int, asked: Any) -> None:
        text, begun = asked
        with about("text"):
            tokens = self.vocabulary.prompt(text, None) if begun else self.vocabulary.tokens(text)
        self.pipes.send(id=request, result=tokens)

    def detokenize(self, request: int, asked: Any) -> None:
        with about("tokens"):
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
        be refused in the end."""
        fewest = max(turns(chat), self.runner.fewest_tokens(characters(chat)))
        self.check_length(fewest, "at least ")

    def check_length(self, prompt: int, bound: str = "") -> None:
        """Raises TooLong for a prompt of so many tokens that no answer would have room behind it."""
        if prompt >= self.context:
            raise TooLong(
                f"the prompt has {bound}{prompt:,} tokens, and the context has room for {self.context:,} "
                "together with the answer",
                hint="shorten the conversation, or load the model with a larger context (--ctx)",
            )

    def render(self, request: int, chat: Chat) -> Prompt:
        """The prompt. The parent hears of it first: it may be the last that this process does."""
        check(chat.tools)
        self.pipes.send(rendering=request)
        return self.prompts.render(chat)

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


def load(pipes: Pipes) -> "Worker | Embedder":
    """Begins to import before it is known what to load."""
    from mdl.engine.devices import usable_gpus
    from mdl.engine.embedder import Embedder
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
