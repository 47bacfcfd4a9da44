import codecs
import gzip
import re
import subprocess
import zlib

import pyarrow as pa
import pyarrow.parquet
import pytest

from edlm.config import ConfigurationError
from edlm.data.corpus import Files

GERMAN = "Die größte Schönheit über allem: „Grüße“ kosten 5 €.\n" * 50
LATIN1 = "Die größte Schönheit über allem\n" * 50
RUSSIAN = "Всё смешалось в доме Облонских.\n" * 50


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=re.escape(str(path))) as refused:
        list(Files(paths=(str(path),), format="txt").documents())
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "utf-16"),
        (GERMAN, "utf-16le"),
        (GERMAN, "utf-16be"),
        (RUSSIAN, "utf-16"),
        (RUSSIAN, "utf-16le"),
        (RUSSIAN, "utf-16be"),
        (GERMAN, "utf-32"),
        (LATIN1, "latin1"),
        (GERMAN, "windows-1252"),
    ],
)
def test_the_advice_on_another_encoding_gives_the_text(tmp_path, text, encoding):
    path, new = tmp_path / "a.txt", tmp_path / "new.txt"
    message = refusal(path, text.encode(encoding))
    assert f"iconv -f {encoding} -t utf-8 " in message
    command = re.search(r"iconv .*", message)[0]
    subprocess.run(command.replace("FILE", str(path)).replace("NEW", str(new)), shell=True, check=True)
    assert [d.text for d in Files(paths=(str(new),), format="txt").documents()] == [text]


def test_utf16_that_was_converted_as_latin1_is_refused_with_its_encoding(tmp_path):
    wrong = GERMAN.encode("utf-16").decode("latin1").encode()
    assert "take the original, and convert it: iconv -f utf-16 " in refusal(tmp_path / "a.txt", wrong)


def test_damaged_bytes_among_utf8_are_not_taken_for_latin1(tmp_path):
    path, new = tmp_path / "a.txt", tmp_path / "new.txt"
    message = refusal(path, GERMAN.encode() + b"\xff" + GERMAN.encode())
    assert "latin1" not in message
    command = re.search(r"iconv -c .*", message)[0].replace("FILE", str(path)).replace("NEW", str(new))
    subprocess.run(command, shell=True, check=False)  # it says by its status that it dropped something
    assert [d.text for d in Files(paths=(str(new),), format="txt").documents()] == [GERMAN * 2]


def test_an_alphabet_that_is_not_latin_is_not_taken_for_latin1(tmp_path):
    message = refusal(tmp_path / "a.txt", RUSSIAN.encode("koi8-r"))
    assert "latin1" not in message
    assert "most bytes are not ASCII" in message


def png():
    chunk = b"IHDR" + bytes((0, 0, 0, 8, 0, 0, 0, 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + bytes(range(256)) * 9


def parquet():
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table({"text": ["one"]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("data", "what", "way_out"),
    [
        (gzip.compress(b"one", mtime=0), "a gzip file", r"\.gz"),
        (pa.compress(b"one", "zstd", asbytes=True), "a Zstandard file", r"\.zst"),
        (codecs.encode(b"one", "bz2"), "a bzip2 file", r"\.bz2"),
        (b"\xfd7zXZ\x00" + b"one", "an xz file", r"\.xz"),
        (b"PK\x03\x04" + b"one", "a zip archive", "unpack"),
        (png(), "a PNG image", "leave it out"),
        (parquet(), "a parquet file", "corpus.format: parquet"),
        (b"%PDF-1.7\n%%EOF\n", "a PDF document", "pdftotext"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(tmp_path, data, what, way_out):
    message = refusal(tmp_path / "a.txt", data)
    assert re.search(rf"is {what}.*{way_out}", message)
    assert "iconv" not in message


@pytest.mark.parametrize("data", [png()[8:], png().decode("latin1").encode()[8:], bytes(range(256)) * 9])
def test_bytes_that_are_no_text_are_not_to_be_converted(tmp_path, data):
    message = refusal(tmp_path / "a.txt", data)
    assert "no text" in message
    assert "iconv" not in message


@pytest.mark.parametrize("text", ["a\0b\x01\n", GERMAN + "\0\x01\x02" + GERMAN, "\x1b[1mbold\x1b[0m\n\f" * 99])
def test_stray_control_characters_are_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert [d.text for d in Files(paths=(str(tmp_path / "a.txt"),)).documents()] == [text]
