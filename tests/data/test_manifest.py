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
        digits = hashlib.sha256(CONTENT).hexdigest() if sha256 is None else sha256
        row = f"mine,data,task,sub/mine.bin,{digits},12,1,2,,free,{source},"
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
    assert (rows[["name", "task", "notes"]] != "").all(axis=None)
    unknown = (rows[["rows", "licence", "source"]] == "").any(axis=1)  # what is not known is said not to be
    assert rows[unknown]["notes"].str.contains("not verified|no licence stated").all()
    stored = rows[rows["files"] != ""]
    assert stored["sha256"].str.fullmatch("[0-9a-f]{64}|md5:[0-9a-f]{32}|").all()
    known = stored[stored["sha256"].str.len() == 64]
    assert (known["bytes"].astype(int) > 0).all()
    assert (known[["licence", "source", "rows"]] != "").all(axis=None)
    assert stored["files"].is_unique
    assert not stored["files"].map(lambda f: Path(f).is_absolute() or ".." in f).any()
    assert (rows["rows"][rows["rows"] != ""].astype(int) > 0).all()
    assert len(known[known["kind"] == "checkpoint"]) == 31


def test_splits_with_sizes_add_up():
    rows = manifest.entries()
    sized = rows[rows["splits"].str.contains(":") & (rows["rows"] != "")]
    assert len(sized) >= 9
    for row in sized.itertuples():
        assert sum(int(part.partition(":")[2]) for part in row.splits.split()) == int(row.rows), row.name


PAPERS = """cifar10 cifar100 mit-indoor cub-200-2011 fgvc-aircraft stanford-cars stanford-dogs oxford-flowers-102
caltech-256 domainnet chestx-ray14 miniimagenet mrpc sst-2 trec subj mr cr mpqa resnet18 resnet50 resnet101 vit-b-16
bert-base-uncased roberta-base clip-vit-base-patch16 gpt2"""


@pytest.mark.parametrize("name", PAPERS.split())
def test_what_the_papers_take_is_listed_and_says_where_it_is_when_it_is_not_here(name, places):
    row = manifest.entry(name)
    with pytest.raises(InputError, match=r"(give its path|that holds it, or fetch it with: genmeasure data fetch .*)$"):
        manifest.path(name)
    assert row["source"] or name == "miniimagenet"


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
    """Serves CONTENT at /mine.bin, or the part asked for; at /whole.bin all of it whatever is asked for, at /cut.bin
    half of what it announces, and nothing else. Keeps what was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            asked.append((self.path, wanted))
            found = self.path in ("/mine.bin", "/whole.bin", "/cut.bin")
            begin = int(wanted[6:-1]) if wanted and self.path == "/mine.bin" else 0
            content = CONTENT[begin:] if found else b""
            self.send_response(404 if not found else 416 if not content else 206 if begin else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:len(content) // 2] if self.path == "/cut.bin" else content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.mark.parametrize(("name", "range_asked_for"), [("mine", "bytes=5-"), ("whole", "bytes=5-")])
def test_an_interrupted_download_goes_on(places, listed, server, name, range_asked_for):
    url, asked = server
    listed(f"{url}/{name}.bin")
    part = places / "cache" / "sub" / "mine.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:5])
    assert manifest.fetch("mine").read_bytes() == CONTENT
    assert asked == [(f"/{name}.bin", range_asked_for)]
    assert not part.exists()


def test_a_download_of_which_only_the_renaming_was_left(places, listed, server):
    url, asked = server
    listed(f"{url}/mine.bin")
    part = places / "cache" / "sub" / "mine.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert manifest.fetch("mine").read_bytes() == CONTENT
    assert asked == [("/mine.bin", f"bytes={len(CONTENT)}-")]


def test_a_connection_that_breaks_leaves_what_came(places, listed, server, monkeypatch):
    monkeypatch.setattr(manifest, "PIECE", 4)
    url, _ = server
    listed(f"{url}/cut.bin")
    refused(manifest.fetch, "mine", "try again, or set GENMEASURE_DATA to a folder that holds sub/mine.bin")
    assert (places / "cache" / "sub" / "mine.bin.part").read_bytes() == CONTENT[:4]
    listed(f"{url}/mine.bin")
    assert manifest.fetch("mine").read_bytes() == CONTENT


def test_hash_of_another_kind_and_none(places, listed):
    put(places / "given")
    listed("owner/repository@commit", "md5:" + hashlib.md5(CONTENT).hexdigest())
    assert manifest.verify("mine") == places / "given" / "sub" / "mine.bin"
    listed("owner/repository@commit", "md5:" + "0" * 32)
    refused(manifest.verify, "mine", "it is damaged or another version: get it again")
    listed("https://example.org/mine.bin", "")
    for function in (manifest.verify, manifest.fetch):
        refused(function, "mine", "so that it cannot be checked; give the file by its path")


def test_fetch_once_and_verify(places, listed, server):
    url, asked = server
    listed(f"{url}/mine.bin")
    for _ in range(2):
        assert manifest.fetch("mine") == places / "cache" / "sub" / "mine.bin"
    assert asked == [("/mine.bin", None)]
    assert manifest.verify("mine").read_bytes() == CONTENT


def test_fetch_that_fails(places, listed, server):
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
    for name in manifest.entries().query("files != '' and not source.str.startswith('http')")["name"]:
        try:
            manifest.path(name)
        except InputError as error:
            pytest.skip(str(error))
        manifest.verify(name)
