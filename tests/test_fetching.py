"""Fetching released files from a real server in a thread: whole, cut, resumed, changed, wrong, there already, out of reach."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unimim import Release, fetching
from unimim.fetching import DAMAGED, PUBLISHED, RECORDED, UNCHECKED, UNKNOWN, Damaged, Unreachable, check, fetch

BODY = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Served:
    """What the server holds. cuts: after how many bytes the next answers break off.  asked: the Range of each request."""

    body: bytes = BODY
    tag: str = '"one"'
    kind: str = "application/octet-stream"
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""

    def release(self, **given: Any) -> Release:
        fields = {
            "about": "a",
            "license": "MIT",
            "source": self.url,
            "file": "w.pth",
            "use": "x={file}",
            "pixels": "224",
        }
        return Release(**{**fields, **given})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            asked = self.headers["Range"]
            served.asked.append(asked)
            whole = not (asked and served.ranges and self.headers["If-Range"] == served.tag)
            start = 0 if whole else int(asked.removeprefix("bytes=").removesuffix("-"))
            cut = served.cuts.pop(0) if served.cuts else len(served.body)
            self.answer(served.body[start : start + cut], start)

        def answer(self, sent: bytes, start: int = 0) -> None:
            if "absent" in self.path:
                self.send_error(404)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(served.body) - start))
            self.send_header("Content-Type", served.kind)
            self.send_header("ETag", served.tag)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            with suppress(ConnectionError):  # the client has what it wants
                self.wfile.write(sent)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/files/w.pth"
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("known", [SHA256, SHA256[:8]])
def test_a_published_file_is_fetched_whole_once(known: str, served: Served, tmp_path: Path) -> None:
    release, folder = served.release(sha256=known, size=len(BODY)), tmp_path / "weights" / "new"
    seen: list[tuple[int, int | None]] = []
    found = fetch(release, folder, lambda done, whole: seen.append((done, whole)))
    assert (found.path, found.verdict, found.sha256) == (folder / "w.pth", PUBLISHED, SHA256)
    assert found.path.read_bytes() == BODY
    assert names(folder) == {"w.pth"}
    assert seen[-1] == (len(BODY), len(BODY))
    assert fetch(release, folder).verdict == PUBLISHED
    assert len(served.asked) == 1
    umask = os.umask(0)
    os.umask(umask)
    assert found.path.stat().st_mode & 0o777 == 0o666 & ~umask  # others of the cluster read it too


def test_where_no_sum_is_published_the_one_seen_is_recorded(served: Served, tmp_path: Path) -> None:
    found = fetch(served.release(), tmp_path)
    assert found.verdict == UNCHECKED
    assert (tmp_path / "w.pth.sha256").read_text() == f"{SHA256}  w.pth\n"
    assert subprocess.run(["sha256sum", "--check", "--status", "w.pth.sha256"], cwd=tmp_path).returncode == 0
    assert fetch(served.release(), tmp_path).verdict == RECORDED
    found.path.unlink()
    served.body = BODY[:-1]
    with pytest.raises(Damaged, match=f"not {SHA256}; nothing was kept"):  # the record is of another file
        fetch(served.release(), tmp_path)
    assert names(tmp_path) == {"w.pth.sha256"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sha256": "0" * 64}, f"its sha256 is {SHA256}, not {'0' * 64}; nothing was kept"),
        ({"sha256": "0" * 8}, r"not 00000000\.\.\.; nothing was kept"),
        ({"size": 5}, f"it has {len(BODY)} bytes, not 5; nothing was kept"),
    ],
)
def test_another_file_than_published_is_not_kept(
    given: dict[str, Any], message: str, served: Served, tmp_path: Path
) -> None:
    with pytest.raises(Damaged, match=message):
        fetch(served.release(**given), tmp_path)
    assert names(tmp_path) == set()


def test_a_cut_connection_is_taken_up_where_it_was_cut(served: Served, tmp_path: Path) -> None:
    served.cuts = [300_000, 0, 0, 0, 0, 5]
    assert fetch(served.release(sha256=SHA256), tmp_path).verdict == PUBLISHED
    assert served.asked == [None, *["bytes=300000-"] * 5, "bytes=300005-"]


@pytest.mark.parametrize(("tag", "ranges"), [('"one"', False), ('W/"one"', True)])
def test_or_from_the_start_where_the_server_cannot_go_on(
    tag: str, ranges: bool, served: Served, tmp_path: Path
) -> None:
    served.cuts, served.tag, served.ranges = [300_000, 400_000], tag, ranges
    assert fetch(served.release(sha256=SHA256), tmp_path).verdict == PUBLISHED


def test_a_file_that_changes_meanwhile_is_not_mixed(served: Served, tmp_path: Path) -> None:
    served.cuts = [300_000]

    def change(done: int, whole: int | None) -> None:
        served.body, served.tag = BODY[::-1], '"two"'

    fetch(served.release(), tmp_path, change)
    assert (tmp_path / "w.pth").read_bytes() == BODY[::-1]


def test_a_server_that_always_cuts_is_given_up(served: Served, tmp_path: Path) -> None:
    served.cuts = [1000] + [0] * 20
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:\d+ cut the connection, 5 times in a row at 1000 bytes"):
        fetch(served.release(), tmp_path)
    assert len(served.asked) == 6
    assert names(tmp_path) == set()


def test_hosts_that_do_not_answer_or_not_with_the_file(served: Served, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        silent = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(Unreachable, match=rf"cannot reach {silent} \(.*refused\)"):
            fetch(served.release(source=f"http://{silent}/w.pth"), tmp_path / "new")
    with pytest.raises(Unreachable, match="answers 404 Not Found"):
        fetch(served.release(source=f"{served.url}/absent"), tmp_path / "new")
    served.kind = "text/html; charset=utf-8"
    with pytest.raises(Unreachable, match="answers with a web page instead of the file"):
        fetch(served.release(), tmp_path / "new")
    assert names(tmp_path) == set()


def test_what_is_interrupted_leaves_nothing(served: Served, tmp_path: Path) -> None:
    def interrupt(done: int, whole: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(served.release(), tmp_path, interrupt)
    assert names(tmp_path) == set()


def test_a_file_that_is_there_is_checked_and_never_replaced(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"mine")
    assert fetch(served.release(), tmp_path).verdict == UNCHECKED
    with pytest.raises(Damaged, match=r"w\.pth is there, but its sha256 is .*; delete it to fetch it again"):
        fetch(served.release(sha256=SHA256), tmp_path)
    assert path.read_bytes() == b"mine"
    assert served.asked == []


def test_every_flipped_byte_is_damage_and_a_bad_record_is_none(served: Served, tmp_path: Path) -> None:
    release = served.release()
    path = fetch(release, tmp_path).path
    assert check(path, None).verdict == RECORDED
    for place in (0, 70_000, len(BODY) - 1):
        path.write_bytes(BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :])
        assert check(path, release).verdict == DAMAGED
    path.write_bytes(BODY)
    for record in (SHA256[:1], "?", "\udcff"):
        (tmp_path / "w.pth.sha256").write_text(record, errors="surrogateescape")
        assert check(path, release).verdict == DAMAGED
    (tmp_path / "w.pth.sha256").unlink()
    assert [check(path, known).verdict for known in (release, None)] == [UNCHECKED, UNKNOWN]


CODE = """
import sys
from pathlib import Path
from unimim import Release
from unimim.fetching import fetch
release = Release("a", "MIT", "hub:timm/some.model/model.safetensors", "m.safetensors", "x={file}", "224")
print(fetch(release, Path(sys.argv[1])).verdict, "torch" in sys.modules)
"""


@pytest.mark.parametrize(("tag", "verdict"), [(f'"{SHA256}"', PUBLISHED), ('"one"', UNCHECKED)])
def test_a_file_of_the_hub_comes_by_its_client_and_cache(
    tag: str, verdict: str, served: Served, tmp_path: Path
) -> None:
    """Its name in the cache is the sha256 that the hub tells; a second folder needs no network."""
    served.tag = tag
    endpoint = served.url.removesuffix("/files/w.pth")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}

    def run(folder: str, **changes: str) -> str:
        command = [sys.executable, "-c", CODE, str(tmp_path / folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment | changes)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("first") == f"{verdict} False\n"
    assert (tmp_path / "first" / "m.safetensors").read_bytes() == BODY
    assert names(tmp_path / "first") == {"m.safetensors", "m.safetensors.sha256"}
    assert run("second", HF_HUB_OFFLINE="1") == f"{verdict} False\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"file": "../w.pth"}, "no plain name"),
        ({"file": ".w.pth"}, "no plain name"),
        ({"source": "file:///etc/passwd"}, "neither a url nor hub:owner/repository/file"),
        ({"sha256": "0123"}, "not 8 to 64 hexadecimal digits"),
        ({"use": "teacher=x"}, r"does not say where \{file\} goes"),
    ],
)
def test_a_release_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Served(url="https://host/w.pth").release(**given)
