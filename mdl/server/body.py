"""The body of a request: bounded in size, time and depth, from bytes to a JSON object. Knows no fields."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

from starlette.requests import Request

from mdl.reference import show
from mdl.server.failure import Refused
from mdl.server.options import Limits

# A megabyte of "[],[],…" becomes thirty of objects. A million tokens of source code have about this many.
MOST_MARKS = 500_000
DEEPEST = 100  # levels: whoever passes a value on goes down them one by one


@dataclass(slots=True)
class Room:
    """What all requests in flight take up: past the limits, the next one is told to come back. A request that
    wants several answers takes the place of as many. One whose body is on its way takes none, or those who
    send slowly would shut out all others; it is bounded by what it sends, and by time."""

    limits: Limits
    requests: int = 0
    size: int = 0

    @contextmanager
    def place(self) -> "Iterator[Place]":
        """For one request."""
        place = Place(self)
        try:
            yield place
        finally:
            self.requests -= place.answers
            self.size -= place.size


@dataclass(slots=True)
class Place:
    room: Room
    size: int = 0
    answers: int = 0

    def want(self, answers: int) -> None:
        """So many answers. Raises Refused: 400 for more than there ever is room for, 503 for more than there
        is now."""
        limit = self.room.limits.requests
        if answers > limit:
            raise Refused(f"{answers:,} answers are more than this server gives at once, {limit:,}")
        if self.room.requests + answers - self.answers > limit:
            raise _full(f"{self.room.requests} requests are waiting or being answered")
        self.room.requests += answers - self.answers
        self.answers = answers

    def grow(self, amount: int) -> None:
        """Raises Refused: 413 for what is too large, 503 for what would be one too many."""
        limits = self.room.limits
        if self.size + amount > limits.body:
            raise too_large(limits)
        if self.room.size + amount > limits.bodies:
            raise _full("the requests in flight fill the memory that they may take")
        self.size += amount
        self.room.size += amount


async def read(request: Request, place: Place, empty: bool = False) -> dict[str, Any]:
    """The JSON object that the client sent; where it may be `empty`, nothing at all is one without fields."""
    limits = place.room.limits
    if int(request.headers.get("content-length", 0)) > limits.body:  # h11 has checked that it is a number
        raise too_large(limits)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                place.grow(len(chunk))
                data += chunk
    except TimeoutError:
        raise Refused(f"the body took more than {limits.body_seconds:g} seconds", status=408) from None
    return {} if empty and not data else parse(data)


def too_large(limits: Limits) -> Refused:
    return Refused(f"the body is larger than {limits.body:,} bytes", status=413)


def parse(data: bytes | bytearray) -> dict[str, Any]:
    """Raises Refused (400) for what is not one JSON object, or means different things to different readers:
    names that come twice, numbers that are none or too large for one."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise Refused("the body has more values than a request can mean")
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise Refused(f"the body is not JSON: {error}") from None
    except ValueError:  # of int(), past 4,300 digits
        raise Refused("the body has a number that is too large") from None
    except RecursionError:
        raise Refused("the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise Refused("the body has to be a JSON object")
    _check_depth(value)
    return value


def _full(cause: str) -> Refused:
    return Refused(f"the server is busy: {cause}", "try again in a while", status=503, code="overloaded")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Refused(f"{show(twice)} comes twice in the body", param=twice)
    return values


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        if not level:
            return
    raise Refused("the body is nested too deeply")


def _children(item: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


def _constant(name: str) -> float:
    raise Refused(f"the body has {name}, which is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise Refused("the body has a number that is too large")
    return number
