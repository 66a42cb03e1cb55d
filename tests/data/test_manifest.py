"""The list of data sets and checkpoints."""

import hashlib
import http.server
import re
import threading
from pathlib import Path

import pooch
import pytest

from genmeasure.data import manifest
from genmeasure.data.digits import digits
from genmeasure.errors import InputError

COLUMNS = "name,kind,task,files,sha256,bytes,rows,classes,splits,licence,source,notes"
CONTENT = b"a small file"


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Two empty folders: the one that the environment names, and the cache; the list may be replaced."""
    monkeypatch.setenv(manifest.FOLDER, str(tmp_path / "given"))
    monkeypatch.setattr(manifest, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(manifest, "folders", lambda: [tmp_path / "given", tmp_path / "cache"])
    return tmp_path


@pytest.fixture
def listed(monkeypatch, places):
    """A list with one row, `mine`, of the given source."""
    def write(source, sha256=None):
        row = f"mine,data,task,sub/mine.bin,{sha256 or hashlib.sha256(CONTENT).hexdigest()},12,1,2,,free,{source},"
        (places / "list.csv").write_text(f"{COLUMNS}\n{row}\n")
        monkeypatch.setattr(manifest, "_list", lambda: places / "list.csv")
    return write


def refused(function, name, end):
    with pytest.raises(InputError) as error:
        function(name)
    assert str(error.value).endswith(end)


def put(folder, content=CONTENT):
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "mine.bin").write_bytes(content)


def test_every_row_is_complete():
    rows = manifest.entries()
    assert list(rows.columns) == COLUMNS.split(",")
    assert rows["name"].is_unique
    assert set(rows["kind"]) == {"embedded", "data", "checkpoint"}
    assert (rows[["name", "task", "licence", "source", "notes"]] != "").all(axis=None)
    stored = rows[rows["kind"] != "embedded"]
    assert stored["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert (stored["bytes"].astype(int) > 0).all()
    assert stored["files"].is_unique
    assert not stored["files"].map(lambda f: Path(f).is_absolute() or ".." in f).any()
    assert (rows["rows"].astype(int) > 0).all()
    assert len(rows[rows["kind"] == "checkpoint"]) == 31


def test_embedded_rows_say_what_is_there():
    for name, classes in (("digits-0-4", range(5)), ("digits-5-9", range(5, 10))):
        row, splits = manifest.entry(name), digits(tuple(classes))
        assert row["splits"].split() == list(splits)
        assert int(row["rows"]) == sum(len(s["y"]) for s in splits.values())
        assert manifest.fetch(name) is None
        refused(manifest.path, name, f"load it with genmeasure.data.readers.load('{name}#train')")


def test_unknown_name():
    refused(manifest.entry, "digits-5-8", "did you mean 'digits-5-9'?")
    refused(manifest.path, "aka_resnet_20", "did you mean 'aka_resnet20'?")


def test_search_order(places, listed):
    listed("owner/repository@commit")
    put(places / "cache")
    assert manifest.path("mine") == places / "cache" / "sub" / "mine.bin"
    put(places / "given")
    assert manifest.path("mine") == places / "given" / "sub" / "mine.bin"


def test_folders(monkeypatch, tmp_path):
    monkeypatch.setenv(manifest.FOLDER, str(tmp_path))
    assert manifest.folders()[0] == tmp_path
    monkeypatch.delenv(manifest.FOLDER)
    beside, cache = manifest.folders()
    assert beside.parts[-2:] == ("shared", "pack")
    assert cache == Path(pooch.os_cache("genmeasure"))


def test_missing_file(listed):
    listed("owner/repository@commit")
    refused(manifest.path, "mine", "set GENMEASURE_DATA to the folder that holds it "
                                   "(it was taken from owner/repository@commit)")
    listed("https://example.org/mine.bin")
    refused(manifest.path, "mine", "or fetch it with: genmeasure data fetch mine")


def test_verify(places, listed):
    listed("owner/repository@commit")
    put(places / "given")
    file = places / "given" / "sub" / "mine.bin"
    assert manifest.verify("mine") == file
    for other in (CONTENT[:-1], CONTENT.replace(b"s", b"z")):
        file.write_bytes(other)
        refused(manifest.verify, "mine", "it is damaged or another version: get it again")


@pytest.fixture
def server():
    """Serves CONTENT at /mine.bin and nothing else; counts what was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            found = self.path == "/mine.bin"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(CONTENT) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def test_fetch_once_and_verify(places, listed, server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    url, asked = server
    listed(f"{url}/mine.bin")
    for _ in range(2):
        assert manifest.fetch("mine") == places / "cache" / "sub" / "mine.bin"
    assert asked == ["/mine.bin"]
    assert manifest.verify("mine").read_bytes() == CONTENT


def test_fetch_that_fails(places, listed, server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    url, _ = server
    end = "try again, or set GENMEASURE_DATA to a folder that holds sub/mine.bin"
    listed(f"{url}/other.bin")
    refused(manifest.fetch, "mine", end)
    listed(f"{url}/mine.bin", sha256="0" * 64)
    refused(manifest.fetch, "mine", end)
    assert not list(places.glob("cache/**/*.bin"))


def test_fetch_without_an_address(listed):
    listed("owner/repository@commit")
    refused(manifest.fetch, "mine", "set GENMEASURE_DATA to a folder that holds sub/mine.bin")


@pytest.mark.parametrize("installed", [True, False])
def test_list_of_a_package_and_of_a_source_tree(monkeypatch, tmp_path, installed):
    module = tmp_path / "genmeasure" / "data" / "manifest.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(manifest, "__file__", str(module))
    with pytest.raises(InputError, match=re.escape("install genmeasure again") + "$"):
        manifest.entries()
    (tmp_path / manifest.LIST).write_text(f"{COLUMNS}\n")
    if installed:
        module.with_name(manifest.LIST).write_text(f"{COLUMNS}\n{'x,' * 11}\n")
    assert len(manifest.entries()) == installed


@pytest.mark.slow
def test_files_of_the_pack():
    for name in manifest.entries().query("kind != 'embedded'")["name"]:
        try:
            manifest.path(name)
        except InputError as error:
            pytest.skip(str(error))
        manifest.verify(name)
