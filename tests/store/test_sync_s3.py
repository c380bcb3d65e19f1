"""Sync with a real S3 server: the same promises through the network stack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import synckit as kit
from storekit import noise, words
from synckit import add_file, add_folder, arrives, chunks, dvk_error, new_store, send

from dvk.backend.contract import Backend
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.errors import RemoteUnreachable
from dvk.store.fetch import Wanted, fetch
from dvk.store.push import Version, push
from dvk.store.store import Store
from dvk.testing.faults import FaultBackend
from dvk.testing.s3server import S3Address

pytestmark = pytest.mark.timeout(120)

TREE = {b"%02d" % i: chunks(i, 1 + i % 4) for i in range(30)} | {b"big": chunks("big", 90), b"l": kit.Link(b"00")}
BIG = (*(noise(("big", i), 60_000) for i in range(60)), words("text", 100_000))


@pytest.fixture
def bucket(s3: S3Address, new_bucket: Callable[[], str]) -> Iterator[Backend]:
    backend = open_backend(f"s3://{new_bucket()}/team", settings=RemoteSettings(), environ=s3.env)
    yield backend
    backend.close()


def test_versions_there_and_back(bucket: Backend, tmp_path: Path) -> None:
    local = new_store()
    edited = {**TREE, b"07": (b"edit",)}
    v1, v2, file = add_folder(local, TREE), add_folder(local, edited), add_file(local, BIG)
    send(local, Store(bucket), tmp_path, v1, file, verify_all=True)
    done = send(local, Store(bucket), tmp_path, Version(v2, (v1,)))
    assert done.new_bytes == 4
    assert len(send(local, Store(bucket), tmp_path, v1, v2, file).covered) == 3
    for root, what in ((v1, TREE), (v2, edited), (file, BIG)):
        arrives(bucket, root, what)
    part = {b"03": TREE[b"03"]}
    arrives(bucket, v1, part, under=b"03")


def test_two_first_pushes_at_once(bucket: Backend, tmp_path: Path) -> None:
    """They agree on one store, and both versions are there."""
    local = new_store()
    roots = [add_folder(local, {**TREE, b"who": (b"%d" % i,)}) for i in range(2)]
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            send(local, Store(bucket), tmp_path / str(i), roots[i])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors
    for i, root in enumerate(roots):
        arrives(bucket, root, {**TREE, b"who": (b"%d" % i,)})


def test_a_cut_push_goes_on(bucket: Backend, tmp_path: Path) -> None:
    local = new_store()
    root = add_file(local, BIG)
    faults = FaultBackend(bucket)
    faults.fail("put", prefix="j/", error=lambda: RemoteUnreachable("cut"), lost_reply=True)
    assert dvk_error(lambda: push(local, Store(faults), [Version(root)], str(tmp_path))) is not None
    done = send(local, Store(faults), tmp_path, root)
    assert done.new_bytes == 0
    assert not fetch(Store(bucket), new_store(), [Wanted(root)]).failures
