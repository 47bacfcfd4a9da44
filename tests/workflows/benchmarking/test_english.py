"""The corpus of the English benchmarks: from its public sources to the bytes that were measured."""

import hashlib
import json
import random
import re
from zipfile import ZipFile

import pytest

from edlm.config import ConfigurationError
from tests.paths import DATA
from workflows.benchmarking.english import (
    FILES,
    SOURCES,
    addresses,
    assemble,
    chapters,
    check,
    digest,
    main,
    read_manifest,
    reviews,
)

ENGLISH = DATA / "english"
LICENCE = "Produced by volunteers.\n\n\n*** START OF THIS PROJECT GUTENBERG EBOOK ***\n"


def archive(path, texts):
    """Write an archive as NLTK's are: a README, and a folder of files, here with the last file first."""
    with ZipFile(path, "w") as written:
        written.writestr(f"{path.stem}/README", "of the archive")
        for name in sorted(texts, reverse=True):
            written.writestr(f"{path.stem}/{name}", texts[name])
    return path


def wrapped(text):
    """Break the paragraphs into lines, at about every tenth single space."""
    draw = random.Random(1)
    return re.sub(r"(?<=\S) (?=\S)", lambda _: "\n" if draw.random() < 0.1 else " ", text)


def public(folder, texts):
    """Write sources that become these texts: numbered files in archives, and wrapped chapters in books."""
    folder.mkdir()
    for source in SOURCES:
        if source.documents is chapters:
            book = "\n\n\n\n\n".join([LICENCE, *map(wrapped, texts[source.name]), "End of the book"])
            (folder / source.file).write_text(book + "\n", encoding="utf-8", newline="\r\n")
        else:
            files = enumerate(texts[source.name])
            archive(
                folder / source.file, {f"{number:04}.txt": f"{text} \n".encode("latin-1") for number, text in files}
            )
    return folder


def small(name):
    return [f"{name}, text {number}: é is not in ASCII.\n\nAnd a second paragraph." for number in range(5)]


@pytest.fixture
def sources(tmp_path):
    """A small world of all eight sources, and the manifest of its documents."""
    texts = {source.name: small(source.name) for source in SOURCES}
    texts["movie_reviews"] = [text.replace("\n\n", " ") for text in texts["movie_reviews"]]
    manifest = {name: [digest(text) for text in documents] for name, documents in texts.items()}
    return public(tmp_path / "sources", texts), manifest


def test_a_review_is_one_line(tmp_path):
    path = archive(tmp_path / "movie_reviews.zip", {"neg/b.txt": "one . \ntwo  , \n", "pos/a.txt": "three . \n"})
    assert list(reviews(path)) == ["one . two ,", "three ."]


def test_an_address_keeps_its_lines_and_its_bytes(tmp_path):
    path = archive(tmp_path / "state_union.zip", {"1945.txt": b"TITLE\r\n \r\nman\xa1\xa6s \n", "1946.txt": "b"})
    assert list(addresses(path)) == ["TITLE\n \nman¡¦s", "b"]


def test_chapters_are_parted_by_three_blank_lines_and_paragraphs_are_one_line(tmp_path):
    (tmp_path / "book.txt").write_bytes(
        b"\xef\xbb\xbfCHAPTER 1\r\n\r\n\r\nIt was\r\nthe  best\r\n  of times\r\n\r\n\r\n\r\n  CHAPTER 2\n\nEnd \n"
    )
    assert list(chapters(tmp_path / "book.txt")) == ["CHAPTER 1\n\n\nIt was the  best   of times", "CHAPTER 2\n\nEnd"]


def test_every_document_is_in_one_of_the_files_and_what_is_not_in_the_manifest_in_none(sources):
    folder, manifest = sources
    lines = [content.splitlines() for content in assemble(folder, manifest).values()]
    assert [len(file) for file in lines] == [36, 2, 2]
    documents = [json.loads(line) for file in lines for line in file]
    assert sorted((document["source"], digest(document["text"])) for document in documents) == sorted(
        (name, expected) for name, digests in manifest.items() for expected in digests
    )
    assert [document["source"] for document in documents] != sorted(document["source"] for document in documents)


def test_absent_sources_are_all_named_with_their_addresses(sources, capsys):
    folder, _ = sources
    (folder / "inaugural.zip").unlink()
    (folder / "war-and-peace.txt").unlink()
    with pytest.raises(SystemExit, match="1"):
        main([str(folder), str(folder / "target")])
    error = capsys.readouterr().err
    assert re.findall(r"^    (\S+) \(from (\S+)\)$", error, re.MULTILINE) == [
        (source.file, source.address) for source in SOURCES if source.name in ("inaugural", "war-and-peace")
    ]
    assert not (folder / "target").exists()


def test_another_edition_is_refused_with_the_first_document_that_it_lacks(sources):
    folder, manifest = sources
    path = folder / "sherlock-holmes.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("text 2", "text two").replace("text 4", "text four"), encoding="utf-8")
    with pytest.raises(ConfigurationError) as error:
        assemble(folder, manifest)
    for part in (str(path), "2 of its 5 documents", "document 3", manifest["sherlock-holmes"][2], "gutenberg.org"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["movie_reviews.zip", "les-mis-rables.txt"])
def test_a_damaged_source_is_refused_with_its_address(sources, name):
    folder, manifest = sources
    (folder / name).write_bytes(b"\xff\xfe damaged")
    with pytest.raises(ConfigurationError, match=rf"{name} is damaged .* get it from https://"):
        assemble(folder, manifest)


def test_other_bytes_than_those_measured_are_never_written(sources):
    folder, manifest = sources
    with pytest.raises(ConfigurationError, match=r"train.jsonl would have SHA-256 .* nothing was written"):
        check(assemble(folder, manifest))


def test_the_manifest_names_each_document_of_each_source_once():
    manifest = read_manifest()
    assert {name: len(digests) for name, digests in manifest.items()} == {
        "movie_reviews": 2000,
        "state_union": 65,
        "inaugural": 59,
        "moby-dick--or-the-whale": 21,
        "pride-and-prejudice": 61,
        "war-and-peace": 366,
        "les-mis-rables": 378,
        "sherlock-holmes": 13,
    }
    assert [source.name for source in SOURCES] == list(manifest)
    every = [key for digests in manifest.values() for key in digests]
    assert len(set(every)) == len(every) == 2963


def test_the_corpus_that_was_measured_comes_out_byte_for_byte(tmp_path, capsys):
    if not ENGLISH.is_dir():
        pytest.skip("the English corpus is not beside this checkout (shared/data)")
    texts = {source.name: {} for source in SOURCES}
    for name in FILES:
        for line in (ENGLISH / name).read_bytes().splitlines():
            document = json.loads(line)
            texts[document["source"]][digest(document["text"])] = document["text"]
    manifest = read_manifest()
    folder = public(tmp_path / "sources", {name: [texts[name][key] for key in manifest[name]] for name in manifest})
    main([str(folder), str(tmp_path / "corpora" / "english")])
    for name, expected in FILES.items():
        content = (tmp_path / "corpora" / "english" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected
        assert content == (ENGLISH / name).read_bytes()
    assert capsys.readouterr().out.count("SHA-256 as measured") == 3
