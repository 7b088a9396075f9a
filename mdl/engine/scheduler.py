"""Continuous batching: who gets how many tokens in the next step. Knows no llama.cpp.

Answers come first, one token each, so that they keep flowing; prompts share what is left of the batch evenly,
the short ones whole. Requests wait in the order in which they came, and start when a slot and the cells for
what they have are free. Answers grow until the cells run out: then the youngest gives its cells back and
waits, first in the queue, to be computed again. The oldest always goes on, so everything ends.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar


class Schedulable(Protocol):
    """A request: the tokens that it has (prompt and answer so far), and how many of them are computed."""

    tokens: list[int]
    computed: int


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
    """At most `slots` at once, `batch` tokens a step (no fewer than slots), `cells` tokens kept.

    No single request may outgrow `cells`. `headroom` tokens are left for each to grow when another one
    starts, so that it is not sent back at once.
    """

    slots: int
    batch: int
    cells: int
    headroom: int = 64
    running: list[S] = field(default_factory=list)  # the oldest first
    waiting: deque[S] = field(default_factory=deque)

    def add(self, sequence: S) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: S) -> None:
        """Finished or cancelled."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def preempt(self) -> S:
        """The youngest, back in the queue with nothing computed: the caller forgets its cells."""
        youngest = self.running.pop()
        youngest.computed = 0
        self.waiting.appendleft(youngest)
        return youngest

    def make_room(self) -> list[S]:
        """Those that have to give up their cells for this step. To be called before `schedule`."""
        preempted = []
        while len(self.running) > 1 and self._needed() > self.cells:
            preempted.append(self.preempt())
        return preempted

    def admit(self) -> list[S]:
        """Those that start now. One alone always may."""
        admitted: list[S] = []
        needed = self._needed() + self.headroom * len(self.running) if self.waiting else 0
        while self.waiting and len(self.running) < self.slots:
            needed += len(self.waiting[0].tokens) + self.headroom
            if self.running and needed > self.cells:
                break
            admitted.append(self.waiting.popleft())
            self.running.append(admitted[-1])
        return admitted

    def schedule(self) -> list[Work[S]]:
        """The next step, answers first. Empty when nothing runs."""
        work, prompts = [], []
        for sequence in self.running:
            if len(sequence.tokens) - sequence.computed == 1:
                work.append(Work(sequence, 1))
            else:
                prompts.append(sequence)
        return work + share(prompts, self.batch - len(work)) if prompts else work

    def _needed(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.running)


def share(prompts: Iterable[S], budget: int) -> list[Work[S]]:
    """`budget` tokens split evenly; what the short ones leave goes to the long ones, the odd tokens to the
    oldest."""
    shares: dict[int, int] = {}
    order = list(prompts)
    for place, (index, pending) in enumerate(
        sorted(
            ((i, len(s.tokens) - s.computed) for i, s in enumerate(order)),
            key=lambda item: (item[1], -item[0]),
        )
    ):
        shares[index] = min(pending, budget // (len(order) - place))
        budget -= shares[index]
    return [Work(sequence, shares[i]) for i, sequence in enumerate(order) if shares[i]]
