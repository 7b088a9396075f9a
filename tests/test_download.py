"""What arrives is what was promised, whatever servers and networks do: with a real server that misbehaves."""

import contextlib
import hashlib
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from faultserver import MODIFIED, FaultServer, Reply, cut, rated, redirect, status

from mdl.download import Downloader, Expected, Job, Limits, Remote, Silent
from mdl.errors import AuthError, DiskError, IntegrityError, MdlError, NetworkError, NotFound, UsageError
from mdl.partial import PIECE, discard, held, note_of

FAST = Limits(
    connections=1, backoff=0.01, longest_wait=0.3, read_timeout=0.5, header_timeout=0.6, connect_timeout=2,
    window=0.4, min_speed=5000, retries=3,
)  # fmt: skip
ONE_TRY = replace(FAST, retries=0)
MANY = replace(FAST, block=PIECE, enough=1e12, connections=8)
SECRET = "s3cret-token"
DATA = random.Random(7).randbytes(3 * PIECE + 12345)
OTHER = random.Random(8).randbytes(len(DATA))


class Log(Silent):
    """Keeps what a person would have been shown."""

    def __init__(self):
        self.starts, self.count, self.retries, self.finishes = [], 0, [], []

    def started(self, name, size, resumed):
        self.starts.append((size, resumed))
        self.count = resumed

    def advanced(self, name, count):
        self.count += count

    def retrying(self, name, reason, seconds):
        self.retries.append((reason, seconds))

    def finished(self, name):
        self.finishes.append(name)


def promise(data, size=True, sha256=True):
    return Expected(len(data) if size else None, hashlib.sha256(data).hexdigest() if sha256 else None)


@pytest.fixture
def server():
    with contextlib.closing(FaultServer()) as server:
        yield server


@pytest.fixture
def other():
    with contextlib.closing(FaultServer()) as server:
        yield server


class Getter:
    """Gets `/file` of a server into a folder, and says what went on."""

    def __init__(self, folder: Path, server: FaultServer):
        self.partial, self.server, self.log = folder / "partial", server, Log()

    def __call__(self, expected=None, limits=FAST, url=None, headers=None, proxies=None):
        remote = Remote(url or self.server.url(), headers or {"Authorization": f"Bearer {SECRET}"})
        self.log = Log()
        downloader = Downloader(limits, self.log, proxies if proxies is not None else {})
        return downloader.fetch("model.gguf", remote, expected or Expected(), self.partial)

    def fails(self, kind, *args, **options) -> MdlError:
        """The error it raises, which must be fit to be shown."""
        with pytest.raises(kind) as caught:
            self(*args, **options)
        assert isinstance(caught.value, MdlError)
        text = f"{caught.value.message} {caught.value.hint}"
        assert "\n" not in text and len(text) < 500 and caught.value.hint
        assert SECRET not in text and "signature" not in text
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mdl-")]
        return caught.value

    @property
    def content(self):
        return self.partial.read_bytes()


@pytest.fixture
def get(tmp_path, server):
    return Getter(tmp_path, server)


# What arrives


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, len(DATA)])
def test_a_file_of_any_size_arrives_whole_and_hashed(get, server, size):
    server.put(DATA[:size])
    received = get(promise(DATA[:size]))
    assert get.content == DATA[:size]
    assert (received.size, received.transferred) == (size, size)
    assert received.sha256 == hashlib.sha256(DATA[:size]).hexdigest()
    assert get.log.count == size and get.log.finishes == ["model.gguf"]


@pytest.mark.parametrize("expected", [Expected(), promise(DATA), promise(DATA, size=False)])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_file_whose_size_the_server_does_not_say_arrives_whole(get, server, chunked, expected):
    server.put(DATA, always=lambda _, honest: replace(honest.without("Content-Length"), chunked=chunked))
    assert get(expected).size == len(DATA)
    assert get.content == DATA


def test_plain_bytes_are_asked_for(get, server):
    server.put(DATA)
    get()
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].headers["user-agent"].startswith("mdl/")


def test_several_files_arrive_in_the_order_they_were_asked_for(tmp_path, server):
    contents = [random.Random(n).randbytes(n * 50_000) for n in range(12)]
    jobs = []
    for number, content in enumerate(contents):
        server.put(content, path=f"/{number}", always=rated(4e6))
        remote = Remote(server.url(f"/{number}"))
        jobs.append(Job(str(number), remote, promise(content), tmp_path / str(number)))
    results = Downloader(FAST, proxies={}).fetch_all(jobs)
    assert [result.size for result in results] == [len(content) for content in contents]
    assert [job.partial.read_bytes() for job in jobs] == contents
    assert 2 <= server.most <= FAST.files


# What was promised


@pytest.mark.parametrize("bad", [OTHER, DATA[:-1] + bytes([DATA[-1] ^ 1]), bytes([DATA[0] ^ 128]) + DATA[1:]])
def test_wrong_bytes_of_the_right_size_are_refused_and_thrown_away(get, server, bad):
    server.put(bad)
    error = get.fails(IntegrityError, promise(DATA))
    assert (
        hashlib.sha256(DATA).hexdigest() in error.message and hashlib.sha256(bad).hexdigest() in error.message
    )
    assert not get.partial.exists() and not note_of(get.partial).exists()
    assert len(server.requests) == 1


def test_a_git_id_is_checked(get, server):
    server.put(DATA)
    right = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    assert get(Expected(git_id=right)).size == len(DATA)
    discard(get.partial)
    server.put(OTHER)
    assert right in get.fails(IntegrityError, Expected(git_id=right)).message


@pytest.mark.parametrize("size", [1, len(DATA) - 1, len(DATA) + 1])
def test_another_size_than_promised_is_refused_before_the_first_byte(get, server, size):
    server.put(DATA)
    error = get.fails(IntegrityError, Expected(size=size))
    assert str(size) in error.message and str(len(DATA)) in error.message
    assert not get.log.starts


@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1, len(DATA) + 1])
def test_another_size_than_promised_is_refused_if_the_server_does_not_say_it(get, server, size):
    server.put(DATA, always=lambda _, honest: replace(honest.without("Content-Length"), chunked=True))
    get.fails((IntegrityError, NetworkError), Expected(size=size))
    assert not get.partial.exists() or held(get.partial) <= len(DATA)


# Content-Length


@pytest.mark.parametrize("text", ["-1", "abc", "1e3", "12 34", "", "٣", "9" * 30])
def test_a_content_length_that_is_no_length_is_refused(get, server, text):
    server.put(DATA, always=lambda _, honest: honest.having(Content_Length=text))
    get.fails(NetworkError)


def test_two_content_lengths_are_refused(get, server):
    server.put(DATA, always=lambda _, honest: replace(honest, raw="Content-Length: 17\r\n"))
    get.fails(NetworkError)


def test_a_content_length_that_is_too_long_ends_as_a_network_error(get, server):
    server.put(DATA, always=lambda _, honest: replace(
        honest.having(Content_Length=str(len(honest.body) + 9)), keep=len(honest.body)))  # fmt: skip
    get.fails((NetworkError, IntegrityError))


def test_a_content_length_that_is_too_short_does_not_pass_for_the_file(get, server):
    server.put(DATA, always=lambda _, honest: honest.having(Content_Length="1000"))
    get.fails(IntegrityError, promise(DATA, size=False))


def test_a_file_larger_than_the_disk_is_refused_before_the_first_byte(get, server):
    server.put(DATA, always=lambda _, honest: honest.having(Content_Length=str(10**17)))
    error = get.fails(DiskError)
    assert "needed" in error.message and "free" in error.message


def test_files_that_together_do_not_fit_are_refused_before_anything_is_asked(tmp_path, server):
    jobs = [Job(n, Remote(server.url()), Expected(size=10**17), tmp_path / n) for n in "ab"]
    with pytest.raises(DiskError, match="needed"):
        Downloader(FAST, proxies={}).fetch_all(jobs)
    assert not server.requests


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "gzip, gzip"])
def test_compressed_bytes_are_refused_unread(get, server, coding):
    server.put(bytes(64 << 20), always=lambda _, honest: honest.having(Content_Encoding=coding))
    assert "compressed" in get.fails(NetworkError).message
    assert server.sent.get("/file", 0) < 32 << 20


def test_a_login_page_does_not_pass_for_the_file(get, server):
    page = Reply(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": "6"}, b"log in")
    server.put(DATA, always=lambda *_: page)
    for expected in (Expected(), promise(DATA), promise(DATA, size=False), promise(DATA, sha256=False)):
        assert "web page" in get.fails(NetworkError, expected).message


def test_a_login_page_does_not_cost_what_has_arrived(get, server):
    server.put(DATA, cut(2 * PIECE))
    get.fails(NetworkError, promise(DATA), ONE_TRY)
    page = Reply(200, {"Content-Type": "text/html", "Content-Length": "6"}, b"log in")
    server.put(DATA, lambda *_: page)
    assert "web page" in get.fails(NetworkError, promise(DATA)).message
    assert get(promise(DATA)).transferred == len(DATA) - 2 * PIECE
    assert get.content == DATA


# Cuts and resumption


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("at", [1, len(DATA) // 2, len(DATA) * 99 // 100, len(DATA) - 1])
def test_a_cut_is_gone_on_from_with_the_next_byte(get, server, at, reset):
    file = server.put(DATA, cut(at, reset))
    received = get(promise(DATA))
    assert get.content == DATA
    again = server.requests[1]
    assert again.headers["if-range"] == file.etag
    assert 0 <= again.range[0] <= at and (reset or again.range[0] == at)
    assert received.transferred == len(DATA)


@pytest.mark.parametrize("expected", [Expected(), promise(DATA)])
def test_the_next_run_gets_only_what_is_missing(get, server, expected):
    server.put(DATA, cut(2 * PIECE + 77))
    get.fails(NetworkError, expected, ONE_TRY)
    assert held(get.partial) == 2 * PIECE + 77
    received = get(expected)
    assert get.content == DATA
    assert server.requests[1].range == (2 * PIECE + 77, len(DATA))
    assert received.transferred == len(DATA) - 2 * PIECE - 77
    assert get.log.starts == [(len(DATA), 2 * PIECE + 77)]


def test_what_is_whole_is_not_asked_for_again(get, server):
    server.put(DATA)
    get(promise(DATA))
    received = get(promise(DATA))
    assert received.transferred == 0 and received.sha256 == hashlib.sha256(DATA).hexdigest()
    assert len(server.requests) == 1


def test_what_is_left_of_a_file_of_another_size_is_not_gone_on_with(get, server):
    server.put(DATA, cut(2 * PIECE))
    get.fails(NetworkError, promise(DATA), ONE_TRY)
    server.put(DATA + OTHER)
    get(promise(DATA + OTHER))
    assert get.content == DATA + OTHER
    assert [request.range for request in server.requests] == [None, None]


def test_a_part_does_not_pass_for_the_whole(get, server):
    span = {"Content-Range": f"bytes 0-9/{len(DATA)}", "Content-Length": "10"}
    server.put(DATA, always=lambda *_: Reply(206, span, DATA[:10]))
    assert "part" in get.fails(NetworkError).message


def test_without_a_validator_and_a_digest_it_starts_over(get, server):
    server.put(DATA, cut(PIECE)).etag = None
    assert get().size == len(DATA)
    assert get.content == DATA
    assert [request.range for request in server.requests] == [None, None]


def test_without_a_validator_a_digest_is_enough(get, server):
    server.put(DATA, cut(PIECE)).etag = None
    get(promise(DATA))
    assert get.content == DATA
    assert [request.range for request in server.requests] == [None, (PIECE, len(DATA))]


def test_a_date_is_a_validator(get, server):
    file = server.put(DATA, cut(PIECE))
    file.etag, file.modified = None, MODIFIED
    get()
    assert get.content == DATA
    assert server.requests[1].headers["if-range"].startswith("Tue, 14 Nov 2023")


def test_a_weak_etag_is_no_validator(get, server):
    server.put(DATA, cut(PIECE)).etag = 'W/"weak"'
    get()
    assert get.content == DATA
    assert [request.range for request in server.requests] == [None, None]


@pytest.mark.parametrize("expected", [Expected(), promise(OTHER)])
def test_an_object_replaced_between_runs_is_never_spliced(get, server, expected):
    file = server.put(DATA, cut(2 * PIECE))
    get.fails(NetworkError, Expected(size=len(DATA)), ONE_TRY)
    file.replace(OTHER)
    get(expected)
    assert get.content == OTHER
    assert "changed" in get.log.retries[0][0]


def test_an_object_replaced_between_attempts_is_never_spliced(get, server):
    def replaced(request, honest):
        server.files["/file"].replace(OTHER)
        return replace(honest, keep=PIECE + 5)

    server.put(DATA, replaced)
    get()
    assert get.content == OTHER


def test_an_object_that_keeps_changing_ends_as_an_error(get, server):
    def replaced(request, honest):
        server.files["/file"].replace(random.randbytes(len(DATA)))
        return replace(honest, keep=PIECE)

    server.put(DATA, always=replaced)
    get.fails(IntegrityError)
    assert len(server.requests) <= 5


def test_a_server_that_forgets_about_if_range_does_not_get_its_splice(get, server):
    file = server.put(DATA, cut(PIECE))
    get.fails(NetworkError, limits=ONE_TRY)
    file.replace(OTHER)
    etag = file.etag

    def careless(request, honest):
        start, end = request.range
        span = {"Content-Range": f"bytes {start}-{end - 1}/{len(OTHER)}", "ETag": etag}
        return Reply(206, {"Content-Length": str(end - start), **span}, OTHER[start:end])

    file.faults.append(careless)
    get()
    assert get.content == OTHER


@pytest.mark.parametrize("lie", [
    f"bytes 0-{len(DATA) - PIECE - 1}/{len(DATA)}",
    f"bytes {PIECE + 1}-{len(DATA) - 1}/{len(DATA)}",
    f"bytes {PIECE}-{len(DATA) - 1}/{len(DATA) + 1}",
    f"bytes {PIECE}-{len(DATA)}/{len(DATA)}",
    f"bytes {PIECE}-{len(DATA) - 1}/*",
    f"bytes {PIECE}-1/{len(DATA)}",
    "bytes", "items 0-1/2", "", None,
])  # fmt: skip
def test_a_part_that_is_not_the_one_asked_for_is_not_taken(get, server, lie):
    def lying(request, honest):
        return honest.having(Content_Range=lie) if lie is not None else honest.without("Content-Range")

    server.put(DATA, cut(PIECE), lying)
    get()
    assert get.content == DATA
    assert len(server.requests) == 3 and server.requests[2].range is None


def test_a_part_that_ends_early_but_says_so_is_taken(get, server):
    def less(request, honest):
        start, _ = request.range
        span = {"Content-Range": f"bytes {start}-{start + 99}/{len(DATA)}", "Content-Length": "100"}
        return replace(honest.having(), headers={**honest.headers, **span}, body=DATA[start : start + 100])

    server.put(DATA, cut(PIECE), less)
    assert get().transferred == len(DATA)
    assert get.content == DATA
    assert server.requests[2].range[0] == PIECE + 100


def test_a_server_that_ignores_ranges_sends_the_file_again(get, server):
    server.put(DATA, cut(PIECE), ranges=False)
    get()
    assert get.content == DATA


def test_a_server_that_ignores_ranges_and_always_cuts_ends_as_an_error(get, server):
    server.put(DATA, always=cut(2 * PIECE), ranges=False)
    get.fails(NetworkError, promise(DATA))
    assert len(server.requests) < 20


def test_a_range_that_the_server_cannot_satisfy_starts_over(get, server):
    server.put(
        DATA, cut(2 * PIECE), lambda *_: Reply(416, {"Content-Length": "0", "Content-Type": "text/html"})
    )
    get(promise(DATA))
    assert get.content == DATA


def test_damage_to_what_was_kept_is_found_and_mended_once(get, server):
    server.put(DATA, cut(2 * PIECE))
    get.fails(NetworkError, promise(DATA), ONE_TRY)
    with get.partial.open("r+b") as file:
        file.write(b"damage")
    get(promise(DATA))
    assert get.content == DATA
    assert len(server.requests) == 3


def test_damage_that_does_not_go_away_ends_as_an_error(get, server):
    server.put(OTHER, cut(2 * PIECE))
    get.fails(NetworkError, promise(DATA), ONE_TRY)
    get.fails(IntegrityError, promise(DATA))
    assert len(server.requests) == 3 and not get.partial.exists()


# Retries


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_failures_that_may_pass_are_tried_again(get, server, code):
    server.put(DATA, status(code), status(code))
    get(promise(DATA))
    assert get.content == DATA and len(get.log.retries) == 2


@pytest.mark.parametrize("code", [500, 503, 429])
def test_failures_that_do_not_pass_end_after_the_retries(get, server, code):
    server.put(DATA, always=status(code))
    assert str(code) in get.fails(NetworkError).message
    assert len(server.requests) == FAST.retries + 1


def test_each_wait_is_longer_than_the_one_before(get, server):
    server.put(DATA, always=status(500))
    get.fails(NetworkError, limits=replace(FAST, retries=5, backoff=0.001, longest_wait=9))
    waits = [seconds for _, seconds in get.log.retries]
    assert len(waits) == 5 and waits[4] > waits[0]
    assert all(0.5 * 0.001 * 2**n <= wait <= 1.5 * 0.001 * 2**n for n, wait in enumerate(waits))


def test_progress_makes_the_retries_start_again(get, server):
    step = int(FAST.min_speed * FAST.window) + 1
    server.put(DATA, *[cut(step)] * (3 * FAST.retries))
    get()
    assert get.content == DATA


@pytest.mark.parametrize(("text", "least", "most"), [
    ("1", 1, 1),
    ("Thu, 31 Dec 2099 23:59:59 GMT", 0.4, 0.4),
    ("soon", 0, 0.1), ("-5", 0, 0.1), ("", 0, 0.1), ("Fri, 99 Foo", 0, 0.1),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0.1), ("999999999999", 0.4, 0.4),
])  # fmt: skip
def test_retry_after_is_honoured_within_bounds(get, server, text, least, most):
    server.put(DATA, status(429, Retry_After=text))
    get(limits=replace(FAST, longest_wait=max(least, 0.4)))
    first, second = server.requests
    assert least <= get.log.retries[0][1] <= most
    assert second.when - first.when >= least
    assert ("999999999999" in get.log.retries[0][0]) == (text == "999999999999")


@pytest.mark.parametrize(("code", "kind"), [
    (401, AuthError), (403, AuthError), (404, NotFound), (410, NotFound),
    (400, NetworkError), (451, NetworkError), (204, NetworkError), (304, NetworkError),
])  # fmt: skip
def test_a_refusal_is_said_at_once(get, server, code, kind):
    server.put(DATA, always=status(code))
    assert str(code) in get.fails(kind).message
    assert len(server.requests) == 1


def test_a_drip_is_dropped(get, server):
    server.put(DATA, always=lambda _, honest: replace(honest, drip=(1, 0.1)))
    assert "bytes a second" in get.fails(NetworkError, limits=replace(FAST, retries=1)).message


def test_a_connection_that_drips_does_not_cost_the_download(get, server):
    server.put(DATA, lambda _, honest: replace(honest, drip=(1, 0.1)))
    get(promise(DATA))
    assert get.content == DATA


@pytest.mark.alone
def test_headers_that_drip_are_dropped(get, server):
    server.put(DATA, always=lambda _, honest: replace(honest, slow_headers=0.1))
    started = time.monotonic()
    get.fails(NetworkError, limits=replace(FAST, retries=1))
    assert time.monotonic() - started < 4


def test_silence_ends_as_an_error(get, server):
    server.put(DATA, always=lambda _, honest: replace(honest, keep=99, stall=9))
    assert "in time" in get.fails(NetworkError, limits=replace(FAST, retries=1)).message
    assert len(server.requests) == 2


# Redirects and secrets


def test_a_secret_stays_with_the_origin_it_was_given_for(get, server, other):
    server.put(b"", always=redirect(other.url("/cdn")))
    other.put(DATA, cut(PIECE), path="/cdn")
    get(headers={"Authorization": SECRET, "X-Api-Key": SECRET, "Cookie": SECRET})
    assert get.content == DATA
    assert SECRET in server.requests[0].headers.values()
    assert not any(SECRET in str(request.headers) for request in other.requests)


def test_a_secret_does_not_come_back_with_the_redirect(get, server, other):
    server.put(b"", path="/start", always=redirect(other.url("/cdn")))
    other.put(b"", path="/cdn", always=redirect(server.url()))
    server.put(DATA)
    get(url=server.url("/start"))
    assert "authorization" in server.requests[0].headers and "authorization" not in server.requests[1].headers


def test_another_name_of_the_same_machine_is_another_origin(get, server):
    server.put(b"", path="/start", always=redirect(f"http://localhost:{server.port}/file"))
    server.put(DATA)
    get(url=server.url("/start"))
    assert "authorization" not in server.requests[1].headers


def test_a_redirect_within_the_origin_keeps_the_secret(get, server):
    server.put(b"", path="/start", always=redirect("file?x=1", 307))
    server.put(DATA)
    get(url=server.url("/start"))
    assert SECRET in server.requests[1].headers["authorization"]


def test_the_hub_is_asked_once_for_all_ranges(get, server, other):
    server.put(b"", always=redirect(other.url("/cdn?signature=1")))
    other.put(DATA, cut(5), cut(40_000), cut(50_000), path="/cdn")
    get(promise(DATA))
    assert len(server.requests) == 1 and len(other.requests) == 4


def test_an_address_that_ran_out_is_asked_for_anew(get, server, other):
    server.put(b"", *[redirect(other.url(f"/cdn?signature={n}")) for n in range(3)])
    other.put(DATA, cut(PIECE), status(403), status(403), path="/cdn")
    get(promise(DATA))
    assert get.content == DATA
    assert [request.path[-1] for request in other.requests] == ["0", "0", "1", "2"]


def test_an_address_that_always_runs_out_ends_as_an_error(get, server, other):
    server.put(b"", always=redirect(other.url("/cdn?signature=1")))
    other.put(DATA, always=status(403), path="/cdn")
    assert "403" in get.fails(NetworkError).message


@pytest.mark.parametrize("location", [
    "/file", "/other", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "http://[", "http://a b/", "//",
    "gopher://x", "javascript:alert(1)", "http://127.0.0.1:99999/", "http://x:y@/",
])  # fmt: skip
def test_a_redirect_in_circles_or_to_nowhere_is_refused(get, server, location):
    server.put(b"", always=redirect(location))
    server.put(b"", always=redirect("/file"), path="/other")
    get.fails((NetworkError, NotFound), limits=ONE_TRY)
    assert len(server.requests) <= 3


def test_endless_redirects_are_refused(get, server):
    server.pages["/file"] = lambda _: Reply(
        302, {"Location": f"/file?{len(server.requests)}", "Content-Length": "0"}
    )
    assert "circles" in get.fails(NetworkError).message
    assert len(server.requests) == FAST.redirects + 1


def test_messages_show_no_query_and_no_password(get, server):
    server.put(DATA, always=status(404))
    url = server.url("/file?signature=abc#signature").replace("://", f"://user:{SECRET}@")
    assert server.url("/file") in get.fails(NotFound, url=url).message
    assert SECRET not in repr(Remote(url, {"Authorization": SECRET})) and "signature" not in repr(Remote(url))


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "file:///etc/passwd", "x", "", "http://", "http://a b", "http://x:y/"]
)
def test_only_web_addresses_are_asked(url):
    with pytest.raises(UsageError):
        Remote(url)


# Names, certificates, proxies


def test_an_unknown_name_is_said_at_once(get):
    error = get.fails(NetworkError, url="http://nowhere.invalid/file")
    assert "nowhere.invalid" in error.message and not get.log.retries


def test_a_refused_connection_is_said(get, server):
    server.close()
    assert "refused" in get.fails(NetworkError, limits=replace(FAST, retries=9)).message
    assert len(get.log.retries) == 2  # nobody has answered yet


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def secure(authority):
    with contextlib.closing(FaultServer(authority)) as server:
        yield server


@pytest.fixture
def trusted(authority, tmp_path, monkeypatch):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def test_an_authority_of_ones_own_is_trusted_through_ssl_cert_file(get, secure, trusted):
    secure.put(DATA, cut(PIECE), cut(PIECE, reset=True))
    get(url=secure.url())
    assert get.content == DATA


def test_a_certificate_of_nobody_is_refused_at_once(get, secure):
    secure.put(DATA)
    error = get.fails(NetworkError, url=secure.url())
    assert "not trusted" in error.message and "SSL_CERT_FILE" in error.hint
    assert not get.log.retries


def test_a_certificate_for_another_name_is_refused(get, secure, trusted):
    error = get.fails(NetworkError, url=secure.url().replace("127.0.0.1", "localhost"))
    assert "not trusted" in error.message


def test_https_never_becomes_http(get, server, secure, trusted):
    secure.put(b"", always=redirect(server.url()))
    server.put(DATA)
    assert "plain http" in get.fails(NetworkError, url=secure.url()).message
    assert not server.requests


def test_a_proxy_is_used_for_http(get, server, other):
    other.put(DATA)
    get(proxies={"http": f"127.0.0.1:{other.port}"})
    assert get.content == DATA
    assert other.proxied == [server.url()] and not server.requests


def test_a_proxy_is_used_for_https_and_does_not_see_the_secret(get, other, secure, trusted):
    secure.put(DATA, cut(PIECE))
    get(url=secure.url(), proxies={"https": other.url("")})
    assert get.content == DATA
    assert set(other.proxied) == {f"127.0.0.1:{secure.port}"} and not other.requests


def test_hosts_without_a_proxy_are_asked_directly(get, server):
    server.put(DATA)
    get(proxies={"http": "http://127.0.0.1:1", "no": "127.0.0.1"})
    assert get.content == DATA


def test_the_proxy_of_the_environment_is_used(get, server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(NetworkError, match="proxy"):
        Downloader(ONE_TRY).fetch("x", Remote(server.url()), Expected(), get.partial)


@pytest.mark.parametrize(
    "proxy", ["http://127.0.0.1:1", "http://user:s3cret-token@127.0.0.1:1", "nowhere.invalid"]
)
def test_a_proxy_that_fails_is_said(get, proxy):
    assert "proxy" in get.fails(NetworkError, proxies={"http": proxy}, limits=ONE_TRY).message


def test_a_proxy_that_wants_credentials_is_said(get, server, other):
    other.put(DATA, always=status(407))
    assert "407" in get.fails(NetworkError, proxies={"http": other.url("")}).message


def test_a_proxy_gets_its_credentials_and_the_server_does_not(get, server, other):
    other.put(DATA)
    get(proxies={"http": f"http://user:pass%20word@127.0.0.1:{other.port}"})
    assert other.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwYXNzIHdvcmQ="


# Several connections


@pytest.mark.alone
def test_a_large_file_comes_over_several_connections(get, server):
    data = random.Random(1).randbytes(24 * PIECE + 99)
    server.put(data, always=rated(4e6))
    started = time.monotonic()
    received = get(promise(data), MANY)
    assert get.content == data
    assert time.monotonic() - started < len(data) / 4e6 * 0.7
    assert 3 <= server.most <= MANY.connections + 1  # it learns a little late that one was closed
    assert received.transferred < len(data) + 8 * MANY.chunk
    assert get.log.count == len(data)


def test_a_fast_connection_is_left_alone(get, server):
    data = random.Random(1).randbytes(4 * PIECE)
    server.put(data, always=rated(8e6))
    get(promise(data), replace(MANY, enough=1))
    assert len(server.requests) == 1


def test_a_server_that_does_not_offer_ranges_is_not_asked_for_any(get, server):
    data = random.Random(1).randbytes(4 * PIECE)
    server.put(data, always=rated(8e6), ranges=False)
    get(promise(data), MANY)
    assert get.content == data
    assert len(server.requests) == 1


def test_all_files_share_the_connections(tmp_path, server):
    data = random.Random(2).randbytes(5 * PIECE)
    server.put(data, always=rated(4e6))
    jobs = [Job(n, Remote(server.url()), promise(data), tmp_path / n) for n in "abc"]
    Downloader(replace(MANY, per_host=5), proxies={}).fetch_all(jobs)
    assert [job.partial.read_bytes() == data for job in jobs] == [True] * 3
    assert 4 <= server.most <= 5 + 3  # it learns a little late that one of each file was closed


def test_an_object_replaced_between_ranges_is_never_spliced(get, server):
    old, new = (random.Random(seed).randbytes(10 * PIECE) for seed in (3, 4))

    def slowly(request, honest):
        if len(server.requests) == 4:
            server.files["/file"].replace(new)
        return replace(honest, rate=8e6)

    server.put(old, always=slowly)
    get(limits=MANY)
    assert get.content == new
    assert "changed" in get.log.retries[0][0]


def test_connections_that_are_refused_do_not_cost_the_download(get, server):
    data = random.Random(5).randbytes(10 * PIECE)

    def two_at_most(request, honest):
        return replace(honest, rate=8e6) if server.now <= 2 else Reply(503, {"Content-Length": "0"})

    server.put(data, always=two_at_most)
    get(promise(data), MANY)
    assert get.content == data


@pytest.mark.alone
def test_too_many_requests_slow_all_connections_down(get, server):
    data = random.Random(6).randbytes(10 * PIECE)
    refused = []

    def once(request, honest):
        if len(server.requests) == 3 and not refused:
            refused.append(request.when)
            return Reply(429, {"Retry-After": "1", "Content-Length": "0"})
        return replace(honest, rate=1e7)

    server.put(data, always=once)
    get(promise(data), replace(MANY, longest_wait=9))
    assert get.content == data
    later = [r.when - refused[0] for r in server.requests if r.when > refused[0] + 0.02]
    assert not [wait for wait in later if wait < 0.98]


def test_connections_that_break_at_random_do_not_cost_the_download(get, server):
    data, dice = random.Random(9).randbytes(20 * PIECE), random.Random(9)

    def breaking(request, honest):
        keep = dice.choice([None, dice.randrange(len(honest.body) + 1)])
        return replace(honest, rate=2e7, keep=keep, reset=dice.random() < 0.5)

    server.put(data, always=breaking)
    get(promise(data), replace(MANY, retries=20))
    assert get.content == data


# Stopping


@pytest.mark.alone
def test_the_first_failure_ends_the_others_at_once(tmp_path, server):
    server.put(DATA, path="/slow", always=rated(1e5))
    server.put(
        DATA, path="/bad", always=lambda _, honest: replace(status(404)(_, honest), slow_headers=0.003)
    )
    jobs = [Job(n, Remote(server.url(f"/{n}")), promise(DATA), tmp_path / n) for n in ("slow", "bad")]
    started = time.monotonic()
    with pytest.raises(NotFound):
        Downloader(FAST, proxies={}).fetch_all(jobs)
    assert time.monotonic() - started < 5
    assert 0 < held(tmp_path / "slow") < len(DATA)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mdl-")]


@pytest.mark.alone
@pytest.mark.parametrize("fault", [
    rated(1e5), lambda _, honest: replace(honest, keep=70_000, stall=9),
    lambda _, honest: replace(honest, slow_headers=1), status(503, Retry_After="60"),
])  # fmt: skip
def test_another_thread_can_stop_it_at_once(get, server, fault):
    server.put(DATA, always=fault)
    downloader = Downloader(Limits(), proxies={})
    timer = threading.Timer(0.4, downloader.cancel)
    timer.start()
    with pytest.raises(MdlError, match="stopped"):
        downloader.fetch("x", Remote(server.url()), promise(DATA), get.partial)
    timer.join()
    asked = time.monotonic()
    while [thread for thread in threading.enumerate() if thread.name.startswith("mdl-")]:
        assert time.monotonic() - asked < 0.5
        time.sleep(0.01)
