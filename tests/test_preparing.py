"""Forms of answers that nobody asked for before: who waits for whom. The trying is a stand-in."""

import threading
from queue import SimpleQueue

import pytest

from mdl.engine.preparing import MOST_NEW, MOST_SLOW, Preparing
from mdl.engine.request import Format
from mdl.errors import Busy


def form(name: str) -> Format:
    return Format("regex", name)


class Asked:
    """Requests for forms. First tries wait for `hold`, and are not enough for forms of which the name begins
    with "slow"; the others wait for `patience`."""

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        self.tried: list[tuple[str, bool]] = []
        self.done: SimpleQueue[tuple[int, Busy | None]] = SimpleQueue()
        self.hold, self.patience = threading.Event(), threading.Event()
        self.begun: SimpleQueue[str] = SimpleQueue()
        self._preparing = Preparing(self._find_out, self.wanted.__contains__)

    def ask(self, request: int, name: str) -> None:
        self.wanted.add(request)
        self._preparing.add(request, form(name), lambda error: self.done.put((request, error)))

    def next(self) -> tuple[int, Busy | None]:
        return self.done.get(timeout=20)

    def _find_out(self, format: Format, patient: bool) -> bool:
        self.tried.append((format.text, patient))
        self.begun.put(format.text)
        (self.patience if patient else self.hold).wait(20)
        return patient or not format.text.startswith("slow")


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_forms_that_take_long_hold_up_no_others(asked: Asked) -> None:
    for request in range(6):
        asked.ask(request, f"slow {request}")
    asked.ask(6, "quick")
    asked.hold.set()
    assert asked.next() == (6, None)
    asked.patience.set()
    assert [asked.next() for _ in range(6)] == [(request, None) for request in range(6)]


def test_who_asks_for_the_same_form_waits_for_the_same_try(asked: Asked) -> None:
    for request in range(3):
        asked.ask(request, "same")
    asked.hold.set()
    assert [asked.next() for _ in range(3)] == [(0, None), (1, None), (2, None)]
    assert asked.tried == [("same", False)]


def test_a_form_that_nobody_waits_for_any_more_is_not_tried(asked: Asked) -> None:
    asked.ask(0, "first")
    assert asked.begun.get(timeout=20) == "first"
    for request, name in enumerate(("left", "slow and left", "left by one", "left by one"), 1):
        asked.ask(request, name)
    asked.wanted -= {1, 2, 3}
    asked.hold.set()
    assert asked.next() == (0, None)
    assert {asked.next(), asked.next()} == {(3, None), (4, None)}
    assert asked.tried == [("first", False), ("left by one", False)]


def test_a_form_that_takes_long_and_was_left_is_given_no_more_time(asked: Asked) -> None:
    asked.hold.set()
    for request in range(3):
        asked.ask(request, f"slow {request}")
    while ("slow 0", True) not in asked.tried or ("slow 2", False) not in asked.tried:
        asked.begun.get(timeout=20)
    asked.wanted -= {1}
    asked.patience.set()
    assert [asked.next(), asked.next()] == [(0, None), (2, None)]
    assert ("slow 1", True) not in asked.tried


@pytest.mark.parametrize("name", ["quick", "slow"])
def test_only_so_many_forms_wait_and_the_next_one_is_told_to_come_back(asked: Asked, name: str) -> None:
    if name == "slow":
        asked.hold.set()
    asked.ask(0, f"{name} 0")  # is being tried
    begun = asked.begun.get(timeout=20)
    while name == "slow" and not asked.tried[-1][1]:
        begun = asked.begun.get(timeout=20)
    assert begun == f"{name} 0"
    most = MOST_SLOW if name == "slow" else MOST_NEW
    for request in range(1, most + 2):
        asked.ask(request, f"{name} {request}")
    request, error = asked.next()
    assert request == most + 1 and isinstance(error, Busy)
    asked.hold.set()
    asked.patience.set()
    assert [asked.next()[0] for _ in range(most + 1)] == [*range(most + 1)]
