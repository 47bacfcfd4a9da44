import json
import re
import socket

import datasets
import fsspec
import pyarrow as pa
import pytest
import yaml
from datasets.exceptions import DatasetGenerationError
from fsspec.spec import AbstractBufferedFile

from edlm.config import ConfigurationError, parse
from edlm.data import corpus_huggingface
from edlm.data.corpus import Files, HuggingFace


def texts(corpus):
    return [document.text for document in corpus.documents()]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "some.jsonl"
    rows = [{"text": "one", "body": "eins"}, {"text": "two", "body": "zwei"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hugging_face_data_set_is_read_whole_or_streamed(lines, streaming):
    corpus = HuggingFace(name="json", data_files=(str(lines),), streaming=streaming)
    assert texts(corpus) == ["one", "two"]
    with pytest.raises(ConfigurationError, match=r"there is no field 'story'; set .* to one of: text, body"):
        texts(HuggingFace(name="json", data_files=(str(lines),), text_field="story", streaming=streaming))


def test_a_hugging_face_data_set_that_cannot_be_had_is_refused(tmp_path, lines):
    with pytest.raises(ConfigurationError, match=r"corpus\.name '.*nowhere' \(config None, split 'train'\)"):
        texts(HuggingFace(name=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigurationError, match=r"split 'exam'"):
        texts(HuggingFace(name="json", data_files=(str(lines),), split="exam", streaming=True))


class Breaking(fsspec.AbstractFileSystem):
    """Files of 500 rows at `breaking://`, of which reads of the second fail `failures` times."""

    protocol = "breaking"
    cachable = False
    files = tuple(b"".join(b'{"text": "row %d"}\n' % (500 * file + row) for row in range(500)) for file in (0, 1))
    failures = 0
    kind: type[Exception] = ConnectionError

    def info(self, path, **settings):
        return {"name": path, "size": len(self.files["second" in path]), "type": "file"}

    def ls(self, path, detail=True, **settings):
        return [self.info(path)] if detail else [path]

    def _open(self, path, mode="rb", **settings):
        return BreakingFile(self, path, mode, cache_type="none")


class BreakingFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        second = "second" in self.path
        if Breaking.failures and second:
            Breaking.failures -= 1
            raise Breaking.kind("the line is down")
        return Breaking.files[second][start:end]


@pytest.fixture
def stream(monkeypatch):
    fsspec.register_implementation("breaking", Breaking, clobber=True)
    monkeypatch.setattr(corpus_huggingface, "WAITS", (0.0, 0.0))
    files = ("breaking://first.jsonl", "breaking://second.jsonl")
    return HuggingFace(name="json", data_files=files, streaming=True)


@pytest.mark.parametrize("kind", [FileNotFoundError, ConnectionError, OSError])
def test_a_stream_that_breaks_off_is_read_on_without_a_row_lost_or_repeated(stream, monkeypatch, caplog, kind):
    monkeypatch.setattr(Breaking, "kind", kind)
    monkeypatch.setattr(Breaking, "failures", 2)
    assert texts(stream) == [f"row {number}" for number in range(1000)]
    assert Breaking.failures == 0
    output = [record.message for record in caplog.records if record.name == "edlm.data.corpus_huggingface"]
    assert output == [f"json:train:500: {kind.__name__}: the line is down; reading on from there in 0 s"] * 2


def test_a_stream_that_stays_down_is_refused_with_the_row(stream, monkeypatch):
    monkeypatch.setattr(Breaking, "failures", 100)
    actual = []
    message = "json:train:500: cannot be read in 3 tries: ConnectionError: the line is down"
    with pytest.raises(ConfigurationError, match=message):
        actual.extend(stream.documents())
    assert Breaking.failures == 97


@pytest.mark.parametrize("kind", [ConnectionError, DatasetGenerationError, TimeoutError])
def test_a_generator_that_fails_in_its_midst_is_read_on_from_there(monkeypatch, kind):
    failures = [kind("gone"), kind("gone")]

    def rows():
        for number in range(2000):
            if number == 1000 and failures:
                raise failures.pop()
            yield {"text": str(number)}

    monkeypatch.setattr(corpus_huggingface, "WAITS", (0.0, 0.0))
    actual = list(corpus_huggingface.rows(datasets.IterableDataset.from_generator(rows), "a"))
    assert [row.name for row in actual] == [f"a:{number}" for number in range(2000)]
    assert [row.fields["text"] for row in actual] == [str(number) for number in range(2000)]


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError, AttributeError])
def test_what_is_malformed_is_not_tried_again(monkeypatch, kind):
    monkeypatch.setattr(corpus_huggingface, "WAITS", (0.0, 0.0))
    tries = []

    def rows():
        yield {"text": "one"}
        tries.append(1)
        raise kind("no row")

    with pytest.raises(ConfigurationError, match=rf"a:1: cannot be read: {kind.__name__}: .*no row"):
        list(corpus_huggingface.rows(datasets.IterableDataset.from_generator(rows), "a"))
    assert len(tries) == 1


def test_a_stored_row_that_cannot_be_read_is_named():
    def spoilt(row):
        raise OSError(f"bad disk, {len(row)} fields")

    stored = datasets.Dataset.from_dict({"text": ["one"]}).with_transform(spoilt)
    with pytest.raises(
        ConfigurationError, match=r"a:0: cannot be read: OSError: bad disk, 1 fields; mend or remove the row"
    ):
        list(corpus_huggingface.rows(stored, "a"))


def test_a_script_is_refused_with_advice_that_works(tmp_path):
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "ds.py").write_text("import datasets\n")
    (tmp_path / "ds" / "a.txt").write_text("one")
    with pytest.raises(ConfigurationError, match=r"is a script, which `datasets` no longer runs") as seen:
        texts(HuggingFace(name=str(tmp_path / "ds")))
    corpus = yaml.safe_load("{" + re.search("corpus: .*", str(seen.value))[0] + "}")["corpus"]
    assert texts(parse(Files, corpus)) == ["one"]


def test_a_build_that_fails_is_refused_with_its_cause(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(
        ConfigurationError,
        match=r"cannot be read: DatasetGenerationError: (?s:.*)\(from \w+: (?s:.*)JSON(?s:.*); check these settings",
    ):
        texts(HuggingFace(name="json", data_files=(str(tmp_path / "a.jsonl"),)))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_save_to_disk_is_read(tmp_path, streaming):
    folder = str(tmp_path / "saved")
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(folder)
    assert texts(HuggingFace(name=folder, streaming=streaming)) == ["one", "two"]
    with pytest.raises(ConfigurationError, match=r"corpus\.revision means nothing for '.*saved', a folder of"):
        texts(HuggingFace(name=folder, revision="main"))


def test_a_folder_of_splits_of_save_to_disk_is_read(tmp_path):
    folder = str(tmp_path / "saved")
    splits = {"train": datasets.Dataset.from_dict({"text": ["a"]}), "test": datasets.Dataset.from_dict({"text": ["b"]})}
    datasets.DatasetDict(splits).save_to_disk(folder)
    assert texts(HuggingFace(name=folder)) == ["a"]
    assert texts(HuggingFace(name=folder, split="test")) == ["b"]
    with pytest.raises(ConfigurationError, match=r"holds no 'exam'; set corpus\.split to one of: train, test"):
        texts(HuggingFace(name=folder, split="exam"))


def test_a_saved_split_is_not_read_for_another(tmp_path):
    folder = str(tmp_path / "saved")
    datasets.Dataset.from_dict({"text": ["a"]}, split=datasets.Split.TEST).save_to_disk(folder)
    assert texts(HuggingFace(name=folder, split="test")) == ["a"]
    with pytest.raises(ConfigurationError, match=r"holds no 'train'; set corpus\.split to one of: test"):
        texts(HuggingFace(name=folder))


def test_rows_without_text_are_refused_or_left_out_and_counted(tmp_path, caplog):
    folder = str(tmp_path / "saved")
    datasets.Dataset.from_dict({"text": ["one", None, "two"]}).save_to_disk(folder)
    with pytest.raises(ConfigurationError, match=r":train:1: the field 'text' is null; set corpus\.skip_nulls: true"):
        texts(HuggingFace(name=folder))
    assert texts(HuggingFace(name=folder, skip_nulls=True)) == ["one", "two"]
    assert "left out 1 rows whose field 'text' is null" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_zstandard_files_are_read(tmp_path, lines, streaming):
    path = tmp_path / "some.jsonl.zst"
    path.write_bytes(pa.compress(lines.read_bytes(), "zstd", asbytes=True))
    assert texts(HuggingFace(name="json", data_files=(str(path),), streaming=streaming)) == ["one", "two"]


def test_a_long_row_is_cut(lines):
    corpus = HuggingFace(name="json", data_files=(str(lines),), longest=2)
    assert [document.name for document in corpus.documents()][:2] == ["json:train:0[0]", "json:train:0[2]"]
    assert texts(corpus) == ["on", "e", "tw", "o"]


def test_the_version_changes_with_local_files_and_with_the_revision(tmp_path, lines):
    files = HuggingFace(name="json", data_files=(str(lines),))
    before = files.version()
    assert files.version() == before
    lines.write_text('{"text": "another text"}\n')
    assert files.version() != before
    folder = HuggingFace(name=str(tmp_path / "saved"))
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(folder.name)
    before = folder.version()
    datasets.Dataset.from_dict({"text": ["other"]}).save_to_disk(folder.name)
    assert folder.version() != before
    assert HuggingFace(name="a/b").version() == "unpinned"
    assert HuggingFace(name="a/b", revision="c").version() == "c"


def test_a_name_of_the_hub_without_a_network_is_refused_at_once(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr("time.sleep", never)
        with pytest.raises(
            ConfigurationError, match=r"corpus\.name 'a/b' .*: the Hugging Face hub at .* does not answer"
        ):
            texts(HuggingFace(name="a/b"))


def never(seconds: float) -> None:
    raise AssertionError(f"it was tried again after {seconds} s")
