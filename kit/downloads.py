"""Files from the network: fetched whole, checked, tried again, and if it fails, with the reason."""

import contextlib
import errno
import hashlib
import http.client
import math
import os
import queue
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from kit.base import Progress, UserError, aside, one_line, reading, say, writing
from kit.locks import alone

PATIENCE, LIMIT = 5.0, 14.5  # seconds: of waiting in silence for a host's first answer; in all
TRIES, PAUSE = 3, 1.0  # seconds before the second one; before the third twice as long


WEB_PAGE = "sends a web page (the login page of a network?)"


class Refused(Exception):
    """What a host sent is of no use, and would be so again."""


class NoAnswer(TimeoutError):
    """A host has not even begun to answer."""


def ask(url: str, others: tuple[str, ...] = (), method: str = "GET"):
    """-> the opened answer to url or, where that fails or is late, to one of others.

    Raises the first one's error. In threads: a dead name server ignores a socket's time-out.
    """
    answers, waiting, errors, start = queue.Queue(), [], {}, time.monotonic()

    def open_one(url: str) -> None:
        try:
            request = urllib.request.Request(url, method=method)
            answers.put((url, urllib.request.urlopen(request, timeout=LIMIT + 0.5)))
        except Exception as error:  # of many kinds
            answers.put((url, error))

    left = [url, *others]
    while left or waiting:
        if left:
            waiting.append(left.pop(0))
            threading.Thread(target=open_one, args=(waiting[-1],), daemon=True).start()
        rest = start + LIMIT - time.monotonic()
        try:
            which, answer = answers.get(timeout=max(0.01, min(PATIENCE, rest)))
        except queue.Empty:
            if time.monotonic() - start >= LIMIT:
                break
            say(f"waiting for {host_of(waiting[0])}, up to {math.ceil(LIMIT)} s")
            continue
        if not isinstance(answer, Exception):
            return answer
        errors[which] = answer
        waiting.remove(which)
    raise errors.get(url) or NoAnswer


def out_of_reach(url: str, *others: str) -> str:
    """Why neither url's host nor one of others answers, or "": an error's number is an answer."""
    try:
        ask(url, others, "HEAD").close()
    except urllib.error.HTTPError:
        return ""
    except Exception as error:  # of many kinds; what may pass is tried again by download()
        return reason(error) if lasting(error) else ""
    return ""


def host_of(url: str) -> str:
    return url.split("/")[2]


def reason(error: BaseException) -> str:
    """Why a download failed, for the reader."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answers {error.code} {' '.join(str(error.reason).split())}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "") or one_line(error)
        return (f"has a certificate that cannot be trusted ({why}: a wrong clock, or a filter in "
                "the network?)")  # fmt: skip
    if isinstance(error, socket.gaierror):
        return "is not found by its name (no network?)"
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "refuses the connection"
    if isinstance(error, http.client.IncompleteRead):
        return f"breaks off after {len(error.partial)} bytes"
    return one_line(error)


def lasting(error: BaseException) -> bool:
    """Whether it would be the same a second later."""
    cause = getattr(error, "reason", error)
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 425, 429)  # late, early, too often
    kinds = Refused, NoAnswer, ssl.SSLCertVerificationError, socket.gaierror, ConnectionRefusedError
    return isinstance(cause, kinds)


def digest(path: Path, wanted: str) -> str:
    """The file's MD5 if wanted has 32 digits, else its SHA-256, as many digits of it."""
    made = hashlib.md5(usedforsecurity=False) if len(wanted) == 32 else hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            made.update(part)
    return made.hexdigest()[: len(wanted)]


def fetched_name(path: Path) -> Path:
    """Where a download goes if something else has its place."""
    return path.with_name(f"{path.stem}-fetched{path.suffix}")


def fetch(url: str, path: Path, wanted: str, *others: str) -> Path:
    """-> where the file with this MD5 or SHA-256 (or the beginning of one) lies.

    At path, or if that is another file, which stays as it is, beside it. What is not there is
    downloaded from url, or from others, which have the same. UserError if that fails.
    """
    places = path, fetched_name(path)
    with reading(path, "move it away"):
        for place in places:
            if place.is_file() and digest(place, wanted) == wanted:
                return place
    state = "is another file" if os.path.lexists(path) else "is missing"
    why = out_of_reach(url, *others)  # then nothing is made, no folder either
    if why:
        raise UserError(f"{path} {state}, and {host_of(url)} {why}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "the folder is read-only")
    with alone(path, path.name):
        for place in places:  # another process may have fetched it
            if place.is_file() and digest(place, wanted) == wanted:
                return place
        if os.path.lexists(path):  # or a link to what is not there now
            say(f"{path} is not what {host_of(url)} has; it stays, {places[1].name} is fetched")
            path = places[1]
            if os.path.lexists(path):
                raise UserError(f"{path} is not what {host_of(url)} has, either; move it away")
        why = download([url, *others], path, wanted)
    if why:
        raise UserError(f"{places[0]} {state}, and {host_of(url)} {why}")
    return path


def download(urls: list[str], path: Path, wanted: str) -> str:
    """-> why it failed, or "". What fails for a moment is tried again, at the next address."""
    for attempt in range(TRIES):
        time.sleep(attempt * PAUSE)
        first, *others = urls[attempt % len(urls) :] + urls[: attempt % len(urls)]
        try:
            with aside(path) as temporary:
                receive(first, temporary, path, others)
                if digest(temporary, wanted) != wanted:
                    raise ValueError("sends another file (its checksum differs)")
            return ""
        except UserError:  # a full disk
            raise
        except Exception as error:  # of many kinds
            why = reason(error)
            if lasting(error) and attempt + 1 >= len(urls):
                break
    return why


def receive(url: str, temporary: Path, path: Path, others=()) -> None:
    """Write all of an answer aside of path. OSError if it breaks off, Refused for a web page."""
    with contextlib.closing(ask(url, others)) as answer:
        size, have = int(answer.headers.get("Content-Length") or 0), 0
        bar = Progress(desc=path.name, total=size or None, unit="B", unit_scale=True, leave=False)
        with bar, temporary.open("wb") as file:
            while part := answer.read(1 << 16):
                if not have and re.match(rb"(\xef\xbb\xbf)?\s*<(!|html|\?xml)", part, re.I):
                    raise Refused(WEB_PAGE)
                with writing(path):
                    file.write(part)
                have += len(part)
                bar.update(len(part))
        if have < size:
            raise ConnectionError(f"breaks off after {have} of {size} bytes")
