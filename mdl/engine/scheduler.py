"""Continuous batching: who gets how many tokens in the next step. Knows no llama.cpp.

Answers come first, one token each, so that they keep flowing; prompts fill what is left of the batch, the
short ones first, and the oldest always with some of it. Requests wait in the order in which they came, and
start when a slot and the cells for what they have are free, from what the cache has of their prompt; one that
begins as another one that is being computed waits for that, so that what they share is computed once. Answers
grow until the cells run out: then the youngest gives its cells back and waits, first in the queue, to be
computed again. The oldest always goes on, so everything ends.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from mdl.engine.prefix import NONE, Cache, common

WORTH = 32  # tokens that a request waits for, which somebody else computes


class Schedulable(Protocol):
    """A request: the tokens that it has (prompt and answer so far), how many of them are computed, in which
    slot of the cache, and at most how many can be in a step. One that is `fresh` starts from nothing. `begin`
    is called when it starts, and again if it had to give way. `branch` is where others may begin as it does:
    its state is saved there, where states are whole."""

    tokens: list[int]
    computed: int
    slot: int
    most: int
    fresh: bool
    branch: int

    def begin(self) -> None: ...


S = TypeVar("S", bound=Schedulable)


class Work(NamedTuple, Generic[S]):
    """Compute the next `amount` tokens of `sequence`; its next token is sampled if nothing is left after
    them."""

    sequence: S
    amount: int

    @property
    def samples(self) -> bool:
        return self.sequence.computed + self.amount == len(self.sequence.tokens)


@dataclass(slots=True)
class Scheduler(Generic[S]):
    """At most `slots` at once, `batch` tokens a step (no fewer than slots). No single request may outgrow the
    cells of the cache, which has at least one slot more.

    `headroom` tokens are left for each to grow when another one starts, so that it is not sent back at once.
    """

    slots: int
    batch: int
    cache: Cache
    headroom: int = 64
    running: list[S] = field(default_factory=list)  # the oldest first
    waiting: deque[S] = field(default_factory=deque)

    def add(self, sequence: S) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: S) -> None:
        """Finished or cancelled: what is computed of it stays in the cache for others."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.cache.keep(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def reset(self) -> list[S]:
        """The cache is empty, whatever was in it. Those who ran, who are removed."""
        lost, self.running = self.running, []
        for sequence in lost:
            self.cache.drop(sequence)
        self.cache.clear()
        return lost

    def schedule(self) -> list[Work[S]]:
        """The next step, for which answers are planned first, in the order of the slots: where each has cells
        of its own, llama.cpp computes only sequences of increasing numbers together. Empty when nothing runs.
        """
        self._admit()
        work = self._planned()
        while not self.cache.make_room(sum(amount for _, amount in work)) and len(self.running) > 1:
            self.preempt()
            work = self._planned()
        return sorted(work, key=lambda step: step.sequence.slot)

    def advance(self, work: Iterable[Work[S]]) -> None:
        """The step is computed."""
        grow = self.cache.grow
        for sequence, amount in work:
            sequence.computed += amount
            grow(sequence, amount)
            if sequence.computed == sequence.branch:
                self.cache.save(sequence)

    def preempt(self) -> None:
        """The youngest is back in the queue, with nothing computed."""
        youngest = self.running.pop()
        self.cache.drop(youngest)
        self.waiting.appendleft(youngest)

    def _admit(self) -> None:
        """Starts those that can. One alone always may."""
        awaiting: list[S] = []
        while self.waiting and len(self.running) < self.slots and len(awaiting) < self.slots:
            sequence = self.waiting[0]
            match = NONE if sequence.fresh else self.cache.match(sequence.tokens)
            if not sequence.fresh and self._is_coming(sequence, match.length):
                awaiting.append(self.waiting.popleft())
                continue
            need = len(sequence.tokens) + self.headroom - self.cache.held(match)
            if self.running and self._promised() + need > self.cache.cells:
                break
            self.running.append(self.waiting.popleft())
            sequence.branch = self._branch(sequence, match.length)
            self.cache.start(sequence, match)
            sequence.begin()
        self.waiting.extendleft(reversed(awaiting))

    def _is_coming(self, sequence: S, here: int) -> bool:
        """Whether one that is being computed will have more of its prompt than what is here."""
        if self.cache.whole:
            return False
        most = len(sequence.tokens) - 1
        return any(
            other.computed < len(other.tokens) - 1
            and common(other.tokens, sequence.tokens, most) >= max(here, other.computed) + WORTH
            for other in self.running
        )

    def _branch(self, sequence: S, here: int) -> int:
        if not self.cache.whole or sequence.fresh:
            return 0
        branch = self.cache.branch(sequence.tokens)
        return branch if branch >= here + WORTH else 0

    def _promised(self) -> int:
        """The cells that those who run have and will need before long."""
        ahead = sum(len(sequence.tokens) - sequence.computed + self.headroom for sequence in self.running)
        return self.cache.busy + ahead

    def _planned(self) -> list[Work[S]]:
        work, prompts = [], []
        for sequence in self.running:
            if len(sequence.tokens) - sequence.computed == 1:
                work.append(Work(sequence, 1))
            else:
                prompts.append(sequence)
        return work + share(prompts, self.batch - len(work)) if prompts else work


def share(prompts: Iterable[S], budget: int) -> list[Work[S]]:
    """`budget` tokens for prompts, the oldest first: those that need least come first, as then most of them
    are answered soon. A quarter is the oldest one's, so that it never stands still."""
    order = list(prompts)
    pending = [_pending(sequence) for sequence in order]
    shares = [0] * len(order)
    shares[0] = min(pending[0], max(1, budget // 4))
    budget -= shares[0]
    for place in sorted(range(len(order)), key=pending.__getitem__):
        more = min(pending[place] - shares[place], budget)
        shares[place] += more
        budget -= more
    return [Work(sequence, amount) for sequence, amount in zip(order, shares, strict=True) if amount]


def _pending(sequence: Schedulable) -> int:
    """Of its tokens, those that can be in the next step."""
    end = sequence.branch if sequence.computed < sequence.branch else len(sequence.tokens)
    return min(end - sequence.computed, sequence.most)
