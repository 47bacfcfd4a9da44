"""Remote files, read from a server that breaks off."""

import gzip
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet
import pytest
from fsspec.implementations.http import HTTPFile

from edlm.config import ConfigurationError
from edlm.data import compressed_files, remote_files
from edlm.data.corpus import Files

TEXTS = [f"row {number} of the file" for number in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


class FailingServer(ThreadingHTTPServer):
    """Serve `content`; break off in the middle of the body, or answer 503, `failures` times."""

    ranges = True
    content = LINES
    failures = 0
    refuses = False
    deleted = False

    def break_off(self, monkeypatch, failures):
        """Fail that often from the first read of a file on; the files are located before."""

        def opened(*arguments):
            self.failures = failures
            return remote_files.RemoteFile(*arguments)

        monkeypatch.setattr(compressed_files, "RemoteFile", opened)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FailingServer

    def missing(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        if self.server.deleted:
            self.missing()
            return
        self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(self.server.content)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def do_GET(self):
        if self.server.deleted:
            self.missing()
            return
        fails = self.server.failures > 0
        self.server.failures -= fails
        if fails and self.server.refuses:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.server.content
        bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.server.ranges and bounds:
            start, end = int(bounds[1]), min(int(bounds[2]), len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
            body = body[start : end + 1]
        else:
            self.send_response(200)
        sent = body[: len(body) // 2] if fails else body
        if self.server.ranges:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(sent)
        else:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) + (b"" if fails else b"0\r\n\r\n"))
        self.close_connection = fails

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote_files, "WAITS", (0.0, 0.0))
    with FailingServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def texts(server, name):
    corpus = Files(paths=(f"http://127.0.0.1:{server.server_port}/{name}",))
    return [document.text for document in corpus.documents()]


def parquet():
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": TEXTS}), file)
    return file.getvalue()


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "ranges"),
    [
        ("a.jsonl", LINES, True),
        ("a.jsonl", LINES, False),
        ("a.jsonl.gz", gzip.compress(LINES), True),
        ("a.jsonl.gz", gzip.compress(LINES), False),
        ("a.parquet", parquet(), True),
    ],
)
def test_a_file_that_breaks_off_is_read_on_without_a_row_lost_or_repeated(
    server, monkeypatch, caplog, name, content, ranges, refuses
):
    server.content, server.ranges, server.refuses = content, ranges, refuses
    server.break_off(monkeypatch, 2)
    assert texts(server, name) == TEXTS
    assert server.failures == 0
    messages = [record.message for record in caplog.records if record.name == "edlm.data.remote_files"]
    assert 1 <= len(messages) <= 2  # a request for the size may break off, too
    assert all("reading on from there in 0 s" in line for line in messages)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("refuses", [False, True])
def test_a_file_that_stays_away_is_refused_with_its_byte_and_its_last_row(server, monkeypatch, ranges, refuses):
    server.ranges, server.refuses = ranges, refuses
    server.break_off(monkeypatch, 1000)
    message = r"a\.jsonl cannot be read from byte [\d,]+ on \(tried 3 times: .*the last document read was"
    with pytest.raises(ConfigurationError, match=message):
        texts(server, "a.jsonl")


def test_a_file_that_cannot_be_located_is_refused_by_name(server):
    server.failures, server.refuses = 1000, True
    with pytest.raises(ConfigurationError, match=r"corpus\.paths: (cannot reach|there is no file) 'http://.*a\.jsonl'"):
        texts(server, "a.jsonl")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_was_deleted_is_refused_at_once(server, monkeypatch, caplog, ranges):
    server.ranges = ranges

    def opened(*arguments):
        server.deleted = True
        return remote_files.RemoteFile(*arguments)

    monkeypatch.setattr(compressed_files, "RemoteFile", opened)
    message = (
        r"a\.jsonl cannot be read from byte 0 on \(tried once: FileNotFoundError: .*the last document read was none"
    )
    with pytest.raises(ConfigurationError, match=message):
        texts(server, "a.jsonl")
    assert [record for record in caplog.records if record.name == "edlm.data.remote_files"] == []


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError, ZeroDivisionError, NotImplementedError])
def test_an_error_of_the_program_is_raised_as_it_is_and_at_once(server, monkeypatch, caplog, kind):
    def read(*_):
        raise kind("a mistake")

    monkeypatch.setattr(HTTPFile, "read", read)
    with pytest.raises(kind, match="a mistake"):
        texts(server, "a.jsonl")
    assert [record for record in caplog.records if record.name == "edlm.data.remote_files"] == []
