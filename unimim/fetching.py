"""Released files: fetched whole or not at all, and told from damaged ones."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from .releases import HUB, Release

PUBLISHED = "matches what was published"
RECORDED = "matches what was recorded"
UNCHECKED = "cannot be checked: its authors publish no sha256, and none was recorded"
UNKNOWN = "not a known release"
DAMAGED = "DAMAGED"

TRIES, PAUSE, TIMEOUT = 5, 1.0, 30.0
"""Cut connections in a row that bring nothing new; seconds between them; seconds without a byte that cut one."""
Progress = Callable[[int, int | None], None]
"""(bytes that are there, bytes in all if they are known)."""


class Unreachable(Exception):
    """The host does not answer, or not with the file."""


class Damaged(Exception):
    """The file is not the one that was published or recorded."""


@dataclass(frozen=True)
class Checked:
    """What is known of a file: one of the five verdicts, its sha256, and what is wrong if it is damaged."""

    path: Path
    verdict: str
    sha256: str
    problem: str = ""


def check(path: Path, release: Release | None) -> Checked:
    """Size and sha256 of a file against what `release` publishes, or else against the .sha256 beside it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    recorded = _recorded(path)
    published = release.sha256 if release else ""
    problem = _mismatch(path.stat().st_size, digest, release, published or recorded)
    if problem:
        return Checked(path, DAMAGED, digest, problem)
    verdict = PUBLISHED if published else RECORDED if recorded else UNCHECKED if release else UNKNOWN
    return Checked(path, verdict, digest)


def fetch(release: Release, folder: Path, progress: Progress = lambda done, whole: None) -> Checked:
    """The file of `release` in `folder`, fetched unless it is there, under its name only once it is whole and checked.

    Where no sha256 is published, the one that was seen is written beside it, FILE.sha256. Raises Unreachable, or Damaged
    for a file that is not as published, or as recorded by an earlier fetch; then nothing is left.
    """
    path = folder / release.file
    if path.exists():
        found = check(path, release)
        if found.problem:
            raise Damaged(f"{path} is there, but {found.problem}; delete it to fetch it again")
        return found
    known = release.sha256
    on_hub = release.source.startswith(HUB)
    if on_hub:
        source, known = _from_hub(release)
    else:
        response = _open(release.source)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{release.file}.{uuid.uuid4().hex[:8]}"  # of this process alone, on shared disks too
    try:
        with part.open("xb+") as file:
            if on_hub:
                with source.open("rb") as cached:
                    shutil.copyfileobj(cached, file, 2**20)
            else:
                _download(release.source, response, file, progress)
            file.flush()
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        problem = _mismatch(size, digest, release, known or _recorded(path))
        if problem:
            raise Damaged(f"{url_of(release)} was fetched, but {problem}; nothing was kept")
        if not release.sha256:
            _record(path).write_text(f"{digest}  {release.file}\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return Checked(path, PUBLISHED if known else UNCHECKED, digest)


def url_of(release: Release) -> str:
    """Where a browser finds the file."""
    repository, _, name = release.source.removeprefix(HUB).rpartition("/")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{repository}/resolve/main/{name}" if release.source.startswith(HUB) else release.source


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str:
    """The sha256 in the file beside, the first word as sha256sum writes it; "" if there is none."""
    record = _record(path)
    words = record.read_text(encoding="utf-8", errors="replace").split() if record.is_file() else []
    return words[0] if words else ""


def _mismatch(size: int, digest: str, release: Release | None, known: str) -> str:
    """What is wrong with a file; empty if nothing is."""
    if release and release.size not in (None, size):
        return f"it has {size} bytes, not {release.size}"
    if known and not (len(known) >= 8 and digest.startswith(known)):
        return f"its sha256 is {digest}, not {known}{'...' * (len(known) < 64)}"
    return ""


def _from_hub(release: Release) -> tuple[Path, str]:
    """The file in the hub client's cache, and its sha256 where the hub tells it: it names what it caches so."""
    hub: Any = import_module("huggingface_hub")
    repository, _, name = release.source.removeprefix(HUB).rpartition("/")
    if not isinstance(hub.try_to_load_from_cache(repository, name), str):
        _open(url_of(release)).close()  # the client would try for half a minute before it says that nobody answers
    try:
        cached = Path(hub.hf_hub_download(repository, name)).resolve()
    except Exception as error:  # whatever the hub client raises
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Unreachable(f"cannot reach {_host(url_of(release))} ({said})") from error
    return cached, cached.name if re.fullmatch(r"[0-9a-f]{64}", cached.name) else ""


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _open(url: str, start: int = 0, tag: str = "") -> http.client.HTTPResponse:
    """The answer of a server: from byte `start` if the file still has this tag, or else the whole of it."""
    headers = {"User-Agent": "unimim"} | ({"Range": f"bytes={start}-", "If-Range": tag} if start and tag else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        raise Unreachable(f"{_host(url)} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"cannot reach {_host(url)} ({getattr(error, 'reason', error)})") from error
    if response.headers.get_content_type() == "text/html":  # a proxy that asks for a name and a password
        response.close()
        raise Unreachable(f"{_host(url)} answers with a web page instead of the file")
    return response


def _download(url: str, first: http.client.HTTPResponse, file: IO[bytes], progress: Progress) -> None:
    """Fill an empty file. A cut connection is taken up where it was cut, or from the start if the server cannot."""
    response: http.client.HTTPResponse | None = first
    furthest, failures, tag, whole, problem = 0, 0, "", None, ""
    while failures < TRIES:
        try:
            response = response or _open(url, file.tell(), tag)
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                file.seek(0)
                file.truncate()
            length, tag = response.headers.get("Content-Length"), _tag(response)
            whole = file.tell() + int(length) if length else None
            with response:
                while chunk := response.read(2**20):
                    file.write(chunk)
                    progress(file.tell(), whole)
            if whole in (None, file.tell()):
                return
            problem = f"{_host(url)} cut the connection"
        except (Unreachable, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        response = None
        failures = 0 if file.tell() > furthest else failures + 1
        furthest = max(furthest, file.tell())
        time.sleep(PAUSE)
    raise Unreachable(f"{problem}, {TRIES} times in a row at {furthest} bytes")


def _tag(response: http.client.HTTPResponse) -> str:
    """What names this very state of the file, if the server says; a weak ETag does not."""
    tag: str = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return "" if tag.startswith("W/") else tag
