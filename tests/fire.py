"""Many clients on one thread, who know the right answers: what they ask, and what may come of it."""

import asyncio
import json
from collections.abc import Iterable
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from random import Random
from typing import Any, NamedTuple

CHAT = "/v1/chat/completions"


class Reply(NamedTuple):
    """`status` is 0 where the connection ended before there was one, and `body` what came, if not all."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def said(self) -> str:
        """The text of an answer, streamed or not."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        choices = (choice for event in self.events for choice in event.get("choices", ()))
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (line.removeprefix(b"data: ") for line in self.body.split(b"\n\n"))
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    @property
    def error(self) -> dict[str, Any] | None:
        """What the server says went wrong, in an answer of its own or at the end of a stream."""
        if self.body[:1] == b"{":
            return json.loads(self.body).get("error")  # type: ignore[no-any-return]
        events = self.events
        return events[-1].get("error") if events else None


class Sum(NamedTuple):
    """A question that the demo answers right (all but one, greedy)."""

    one: int
    other: int

    @classmethod
    def any(cls, random: Random) -> "Sum":
        found = cls(random.randint(0, 10), random.randint(0, 10))
        return found if found != (3, 9) else cls(7, 5)

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"What is {self.one} plus {self.other}?"}]

    @property
    def answer(self) -> str:
        return f"{self.one} plus {self.other} is {self.one + self.other}."

    def body(self, **fields: Any) -> bytes:
        return json.dumps({"model": "demo", "messages": self.messages, "temperature": 0, **fields}).encode()


def head(path: str, length: int, *lines: str, method: str = "POST") -> bytes:
    start = (f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {length}")
    return "\r\n".join((*start, *lines, "", "")).encode()


async def ask(port: int, body: bytes, path: str = CHAT, *, seconds: float = 60.0) -> Reply:
    """Raises TimeoutError for an answer that hangs."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head(path, len(body)) + body)
            return parsed(await heard(reader))
        finally:
            writer.close()


async def heard(reader: asyncio.StreamReader) -> bytes:
    """All until the end, however it comes."""
    data = b""
    try:
        while piece := await reader.read(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return data


def parsed(data: bytes) -> Reply:
    response = HTTPResponse(_Socket(data))  # type: ignore[arg-type]
    try:
        response.begin()
    except (HTTPException, OSError):
        return Reply(0, {}, data, False)
    headers = {name.lower(): value for name, value in response.getheaders()}
    try:
        return Reply(response.status, headers, response.read(), True)
    except HTTPException as error:
        return Reply(response.status, headers, getattr(error, "partial", b""), False)


class _Socket:
    """Bytes that have come, as `http.client` wants them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> BytesIO:
        return BytesIO(self._data)


async def gathered(tasks: Iterable[Any]) -> list[Any]:
    """All results; the first error ends the others."""
    async with asyncio.TaskGroup() as group:
        started = [group.create_task(task) for task in tasks]
    return [task.result() for task in started]


class Soak:
    """Clients of all kinds for a time: `kinds` counts what they did, `wrong` tells what they should not have
    got."""

    def __init__(self, port: int, seed: int, clients: int = 8) -> None:
        self.kinds: dict[str, int] = {}
        self.wrong: list[str] = []
        self._port = port
        self._seed = seed
        self._clients = clients

    async def run(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        await gathered(self._client(Random(self._seed + number), end) for number in range(self._clients))

    async def _client(self, random: Random, end: float) -> None:
        while asyncio.get_running_loop().time() < end:
            kind = random.choice(("whole", "streamed", "several", "long", "refused", "vanishing", "tokens"))
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            await getattr(self, f"_{kind}")(random)

    async def _whole(self, random: Random, **fields: Any) -> None:
        question = Sum.any(random)
        reply = await ask(self._port, question.body(**fields))
        self._expect(reply, reply.status == 200 and reply.said == question.answer)

    async def _streamed(self, random: Random) -> None:
        await self._whole(random, stream=True)

    async def _several(self, random: Random) -> None:
        question = Sum.any(random)
        reply = await ask(self._port, question.body(n=3, logprobs=True, top_logprobs=2))
        said = {choice["message"]["content"] for choice in json.loads(reply.body).get("choices", ())}
        self._expect(reply, said == {question.answer})

    async def _long(self, random: Random) -> None:
        """A prompt that is new, most of the context."""
        words = " ".join(str(random.randrange(100)) for _ in range(random.randrange(10, 400)))
        message = [{"role": "user", "content": words}]
        fields = {"temperature": 1, "max_tokens": 30, "messages": message}
        reply = await ask(self._port, json.dumps(fields | {"model": "demo"}).encode())
        self._expect(reply, reply.status == 200)

    async def _refused(self, random: Random) -> None:
        body = random.choice((b"{", b"[]", b'{"messages": 1}', b'{"model": "none", "messages": []}'))
        reply = await ask(self._port, body)
        self._expect(reply, reply.status in (400, 404) and reply.error is not None)

    async def _vanishing(self, random: Random) -> None:
        await vanish(self._port, random, Sum.any(random).body(stream=True, max_tokens=200))

    async def _tokens(self, random: Random) -> None:
        text = Sum.any(random).answer * random.randrange(1, 200)
        reply = await ask(self._port, json.dumps({"model": "demo", "content": text}).encode(), "/tokenize")
        self._expect(reply, reply.status == 200)

    def _expect(self, reply: Reply, right: bool) -> None:
        if not right:
            self.wrong.append(f"{reply.status} {reply.body[-300:]!r}")


async def vanish(port: int, random: Random, body: bytes) -> None:
    """Leaves before, during or after its question, or somewhere in its answer, politely or not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = head(CHAT, len(body)) + body
    where = random.choice(("before", "during", "after", "answered"))
    writer.write(data if where in ("after", "answered") else data[: random.randrange(len(data))])
    if where == "answered":
        await reader.read(random.randrange(1, 2000))
    elif where != "before":
        await asyncio.sleep(random.random() * 0.02)
    if random.random() < 0.5:
        writer.transport.abort()
    writer.close()
