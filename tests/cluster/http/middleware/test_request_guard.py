"""The gate, here and before Ray's proxy: small requests of known hosts come in, and no header turns a limit off."""

import re
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from cluster.config import Serving
from cluster.http.limits.settings import request_limits_of
from cluster.http.local import listening, serving
from cluster.http.middleware.request_guard import MAX_BODY_BYTES, MAX_HEADER_BYTES
from cluster.serving.proxy import CONTROL, Intake, middlewares
from tests.cluster.asking import COMPLETIONS, JSON, ask, error

HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n".encode()
ID = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def behind_proxy() -> Iterator[tuple[str, list]]:
    """A server that answers with its own id, behind what stands before Ray's proxy; and the headers that it got."""
    got = []

    async def app(scope, receive, send):
        got.append(dict(scope["headers"]))
        body = (await receive())["body"]
        headers = [(b"X-Request-ID", b"ray"), (b"x-request-id", b"app"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": str(len(body)).encode()})

    with listening(Intake(app)) as url:
        yield url, got


@pytest.fixture(params=["app", "proxy"])
def either(request, url, behind_proxy) -> str:
    return url if request.param == "app" else behind_proxy[0]


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def raw(url: str, data: bytes) -> bytes:
    """What the server says to these bytes, up to the end of the headers."""
    with closing(socket.create_connection(address(url), timeout=30)) as connection:
        connection.sendall(data)
        return connection.recv(65536)


def test_a_body_that_is_too_large_is_refused_declared_or_not(either):
    def drip():
        for _ in range(40):
            yield b" " * 2**15

    assert error(ask(either, COMPLETIONS, b" " * (MAX_BODY_BYTES + 1)), 413)["code"] == "body_too_large"
    assert error(ask(either, COMPLETIONS, drip()), 413)["code"] == "body_too_large"


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 400, "٣"])
def test_a_length_that_is_no_length_is_refused(either, length):
    answer = raw(either, HEAD + f"content-length: {length}\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


def test_hundreds_of_megabytes_leave_no_trace_in_memory(either):
    block = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    with closing(socket.create_connection(address(either), timeout=30)) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        before = resident_bytes()
        for _ in range(300 * 16):
            connection.sendall(block)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        assert resident_bytes() - before < 20 * 2**20


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("count", [1, 5000])
def test_large_headers_are_refused(either, count):
    size = 2 * MAX_HEADER_BYTES // count
    headers = [("content-type", "application/json"), *((f"x-{i}", "a" * size) for i in range(count))]
    assert error(ask(either, COMPLETIONS, "{}", headers=headers), 431)["code"] == "headers_too_large"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "", "[::2]:8000"])
def test_a_page_of_another_host_gets_no_answer(url, host):
    assert error(ask(url, COMPLETIONS, {}, headers={**JSON, "host": host}), 403)["code"] == "forbidden_host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_this_machines_own_names_are_answered_and_no_page_elsewhere_may_read_it(url, host):
    for method in ("GET", "OPTIONS"):
        headers = {"host": host, "origin": "http://evil.example", "access-control-request-method": "POST"}
        response = ask(url, "/v1/models", method=method, headers=headers)
        assert response.status_code == (200 if method == "GET" else 405)
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_names_of_the_settings_are_answered_beside_its_own(generator):
    """By 127.0.0.1 the endpoint is asked whether it is ready, and whether a promoted version answers."""
    named = Serving(host="127.0.0.2", hosts=("EDLM.Example.com",))
    with serving(generator, "1/abc", request_limits=request_limits_of(named)) as service:
        for host in ("edlm.example.COM:80", "127.0.0.1:8000", "localhost", "127.0.0.2:8000", "[::1]"):
            assert ask(service.url, "/readyz", method="GET", headers={"host": host}).status_code == 200
        assert error(ask(service.url, "/v1/models", method="GET", headers={"host": "x.com"}), 403)


def test_beyond_this_machine_any_name_is_answered_until_some_are_given():
    assert request_limits_of(Serving(host="0.0.0.0", open=True)).hosts == ("*",)
    assert "*" not in request_limits_of(Serving(host="::", open=True, hosts=("edlm.example.com",))).hosts
    assert request_limits_of(Serving(host="::2", open=True, hosts=("a",))).hosts[-2:] == ("[::2]", "a")


@pytest.mark.parametrize("given", ["0", "-1", "?1"])
def test_headers_that_would_turn_limits_off_do_nothing(url, given):
    headers = {**JSON, **{name.decode(): given for name in CONTROL}}
    late = {"edlm": {"timeout_seconds": 1e-9}}
    assert error(ask(url, COMPLETIONS, late, headers=headers), 504)["code"] == "deadline_exceeded"


def test_ray_never_sees_the_headers_that_it_obeys(behind_proxy):
    url, got = behind_proxy
    names = [*(name.decode() for name in CONTROL), "X-Request-Timeout-Seconds", "Serve-Multiplexed-Model-ID"]
    assert ask(url, "/", {}, headers={**JSON, **dict.fromkeys(names, "0")}).text == "2"
    assert not set(got[-1]) & CONTROL
    assert got[-1][b"content-type"] == b"application/json"


def test_ray_is_given_a_middleware_that_it_takes():
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    assert [middleware.cls for middleware in validate_http_proxy_callback_return(middlewares())] == [Intake]


@pytest.mark.parametrize("given", ["abc-1._Z", "a" * 64])
def test_a_proper_request_id_comes_back(either, given):
    headers = {**JSON, "x-request-id": given}
    assert ask(either, COMPLETIONS, {"prompt": 1}, headers=headers).headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "a\tb", "ünï", "x" * 10_000, "a;b"])
def test_a_forged_request_id_is_replaced(either, given):
    headers = {**JSON, "x-request-id": given.encode()}
    (actual,) = ask(either, COMPLETIONS, {"prompt": 1}, headers=headers).headers.get_list("x-request-id")
    assert ID.fullmatch(actual)


@pytest.mark.parametrize("given", [b"a\x1b[31m", b"a\nb: c", b"a\rb"])
def test_control_characters_in_a_header_make_no_second_line(either, given):
    answer = raw(either, b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx-request-id: " + given + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    assert given not in answer


def test_a_client_that_drips_its_body_delays_no_other_client(url):
    with closing(socket.create_connection(address(url), timeout=30)) as connection:
        connection.sendall(HEAD + b"content-length: 99\r\n\r\n{")
        assert ask(url, COMPLETIONS, {"max_tokens": 1}).status_code == 200


def test_a_client_that_goes_away_within_its_body_is_forgotten(service):
    before = service.endpoint.engine.statistics().submitted
    with closing(socket.create_connection(address(service.url), timeout=30)) as connection:
        connection.sendall(HEAD + b'content-length: 99\r\n\r\n{"prompt": "a')
    assert ask(service.url, "/healthz", method="GET").status_code == 200
    assert service.endpoint.engine.statistics().submitted == before
