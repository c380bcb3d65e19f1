"""`diff` of contents, from pointer to rows: tables and tensors of versions, the workspace, remotes and plain files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flowkit import Flow, noise

import dvk
from dvk.commands.diff import diff
from dvk.commands.diff_plain import diff_files
from dvk.commands.diff_result import DiffResult, PathDiff
from dvk.commands.diff_source import WorkFile
from dvk.errors import ChangedWhileRead, UsageError
from dvk.ids import FileId
from dvk.table.contract import ReadOptions


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


def table(rows: dict[int, str]) -> bytes:
    return b"id,price\n" + b"".join(b"%d,%s\n" % (i, price.encode()) for i, price in rows.items())


def big(change: dict[int, str] | None = None) -> bytes:
    """About 2.6 MB in some forty chunks."""
    filler = noise(40, 7).hex()
    return table({i: f"{i % 97}.{filler}" for i in range(30_000)} | (change or {}))


def parquet(rows: dict[int, float]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": list(rows), "x": list(rows.values())}), out)
    return out.getvalue()


def npy(*values: float) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values))
    return out.getvalue()


@contextmanager
def compared(flow: Flow, *paths: str, **options: Any) -> Iterator[DiffResult]:
    with flow.repo() as repo, diff(repo, paths, **options) as result:
        yield result


def only(result: DiffResult) -> PathDiff:
    assert result.failures == [], [str(e) for e in result.failures]
    assert len(result.paths) == 1, [p.path for p in result.paths]
    return result.paths[0]


def counts(path: PathDiff) -> tuple[int, int, int]:
    assert path.table is not None
    r = path.table.rows
    return r.added, r.removed, r.modified


OLD, NEW = {1: "1.0", 2: "2.0", 3: "3.0"}, {1: "1.0", 2: "2.5", 4: "4.0"}


def test_a_table_that_is_named_is_compared_by_rows_between_any_two_sides(flow: Flow) -> None:
    flow.write({"dvk.toml": flow.read("dvk.toml") + b'[[table]]\npath = "*.csv"\nkey = ["id"]\n'})
    flow.version({"t.csv": table(OLD)}, "t.csv")
    flow.write({"t.csv": table(NEW)})
    for options in ({}, {"a": "HEAD"}):
        with compared(flow, "t.csv", **options) as result:
            path = only(result)
            assert counts(path) == (1, 1, 1) and path.table is not None
            assert (path.table.key.columns, path.table.key.source) == (("id",), "config")
            rows = {c.kind: c for c in path.table.changes()}
            assert rows["modified"].cells == {"price": ("2.0", "2.5")}
            assert path.table.b.label == "t.csv in the workspace"
    flow.version({}, "t.csv")
    with compared(flow, "t.csv", a="HEAD~1", b="HEAD", key=["price"]) as result:
        path = only(result)
        assert path.table is not None and path.table.key.source == "option" and path.table.a.label == "t.csv at HEAD~1"
    with compared(flow, a="HEAD~1", b="HEAD") as result:
        assert only(result).table is None, "nobody named it"
    with compared(flow, a="HEAD~1", b="HEAD", tables=True) as result:
        assert counts(only(result)) == (1, 1, 1)
    with compared(flow, "t.csv", a="HEAD~1", b="HEAD", contents=False) as result:
        assert only(result).table is None


def test_a_table_that_came_or_went_has_all_its_rows_added_or_removed(flow: Flow) -> None:
    flow.version({"other": b"1"}, "other")
    flow.version({"t.csv": table(OLD)}, "t.csv")
    with compared(flow, "t.csv", a="HEAD~1", b="HEAD") as result:
        path = only(result)
        assert (path.status, counts(path)) == ("added", (3, 0, 0)) and path.table is not None
        assert [c.values["price"] for c in path.table.changes(limit=2)] == ["1.0", "2.0"]
    with compared(flow, "t.csv", a="HEAD", b="HEAD~1") as result:
        assert (only(result).status, counts(only(result))) == ("removed", (0, 3, 0))


def test_an_edit_in_the_workspace_is_found_by_the_chunks_that_add_would_make(flow: Flow) -> None:
    flow.version({"t.csv": big()}, "t.csv")
    flow.write({"t.csv": big({15_000: "1.5"})})
    with compared(flow, "t.csv", key=["id"]) as result:
        path = only(result)
        assert counts(path) == (0, 0, 1) and path.table is not None
        assert path.table.cost.level == "L1" and path.table.cost.rows_skipped > 20_000
        assert path.new_bytes is not None and path.new_bytes < 400_000


def test_the_chunks_of_a_file_are_those_of_add(flow: Flow, tmp_path: Path) -> None:
    for name, data in (
        ("a", b""),
        ("b", b"x"),
        ("c.csv", big()),
        ("d.npy", npy(*range(300_000))),
        ("e", noise(9 << 20, 3)),
    ):
        flow.version({name: data}, name)
        file = WorkFile(flow.at(name), label=name, profile="auto-64k")
        found, pointer = file.chunks(), flow.pointer(name)
        with flow.repo() as repo:
            stored = repo.store.chunks_of(FileId(pointer.id), pointer.size)
        assert stored is not None and np.array_equal(found.ids, stored.ids), name
        assert np.array_equal(found.lengths, stored.lengths), name
        file.close()
    file = WorkFile(flow.at("e"), label="e", profile="auto-64k")
    os.truncate(flow.at("e"), 100)
    with pytest.raises(ChangedWhileRead):
        file.chunks()
    file.close()


def test_a_clone_without_data_reads_the_ranges_that_it_needs_and_keeps_nothing(flow: Flow, tmp_path: Path) -> None:
    flow.version({"t.csv": big(), "m.npy": npy(1, 2)}, "t.csv", "m.npy")
    flow.version({"t.csv": big({15_000: "1.5"}), "m.npy": npy(1, 3)}, "t.csv", "m.npy")
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    with compared(clone, "t.csv", "m.npy", a="HEAD~1", b="HEAD", key=["id"]) as result:
        by_path = {p.path: p for p in result.paths}
        assert result.failures == [] and result.remote == "origin"
        assert counts(by_path[b"t.csv"]) == (0, 0, 1)
        assert [c.cells["price"][1] for c in by_path[b"t.csv"].table.changes()] == ["1.5"]  # type: ignore[union-attr]
        assert by_path[b"m.npy"].tensors is not None and by_path[b"m.npy"].tensors.changes[0].max_abs == 1.0
    with clone.repo() as repo:
        assert repo.store.chunks_of(FileId(clone.pointer("t.csv").id), clone.pointer("t.csv").size) is None
    with compared(clone, "t.csv", "m.npy", a="HEAD~1", b="HEAD", fetch=False) as result:
        assert {p.status for p in result.paths} == {"changed"}, "what the pointers say stands"
        assert [e.kind for e in result.failures] == ["data-missing"] * 2


def test_parquet_and_a_change_of_format(flow: Flow) -> None:
    flow.version({"t.parquet": parquet({1: 1.0, 2: 2.0})}, "t.parquet")
    flow.version({"t.parquet": parquet({1: 1.0, 2: 2.5, 3: 3.0})}, "t.parquet")
    with compared(flow, "t.parquet", a="HEAD~1", b="HEAD") as result:
        path = only(result)
        assert counts(path) == (1, 0, 1) and path.table is not None and path.table.a.format == "parquet"


def test_contents_inside_of_folders_on_request(flow: Flow) -> None:
    flow.version(
        {
            "d/a.csv": table(OLD),
            "d/same.csv": table(OLD),
            "d/m.npy": npy(1, 2),
            "d/x.bin": b"1",
            "d/gone.csv": table(OLD),
        },
        "d",
    )
    flow.write({"d/a.csv": table(NEW), "d/m.npy": npy(1, 4), "d/x.bin": b"2", "d/sub/new.csv": table(NEW)})
    flow.remove("d/gone.csv")
    want = {b"d/a.csv": (1, 1, 1), b"d/gone.csv": (0, 3, 0), b"d/sub/new.csv": (3, 0, 0)}
    for options in ({}, {"a": "HEAD~1", "b": "HEAD"}):
        if options:
            flow.version({}, "d")
        with compared(flow, tables=True, **options) as result:
            path = only(result)
            assert {p.path: counts(p) for p in path.inside if p.table is not None} == want
            assert [p.path for p in path.inside if p.tensors is not None] == [b"d/m.npy"]
        with compared(flow, "d/a.csv", **options) as result:
            assert counts(only(result)) == (1, 1, 1)
        with compared(flow, "d", **options) as result:
            assert only(result).inside == []


def test_what_is_on_disk_is_read_there_and_what_was_never_asked_for_is_not(flow: Flow, tmp_path: Path) -> None:
    flow.version({"d/val/a.csv": table(OLD), "d/train/a.csv": table(OLD)}, "d")
    flow.version({"d/val/a.csv": table(NEW), "d/train/a.csv": table(NEW)}, "d")
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    clone.pull("d/val", store=False)
    with compared(clone, a="HEAD~1", tables=True, key=["id"]) as result:
        assert result.failures == [], [str(e) for e in result.failures]
        inside = {p.path: counts(p) for p in only(result).inside}
        assert inside == {b"d/val/a.csv": (1, 1, 1), b"d/train/a.csv": (1, 1, 1)}


def test_what_cannot_be_read_is_named_and_the_others_are_compared(flow: Flow) -> None:
    flow.version({"good.csv": table(OLD), "bad.csv": table(OLD), "fake.npy": npy(1)}, "good.csv", "bad.csv", "fake.npy")
    flow.write({"good.csv": table(NEW), "bad.csv": b'id,price\n1,"open\n', "fake.npy": b"\x80\x04pickle"})
    with compared(flow, tables=True, key=["id"]) as result:
        assert {p.path: p.status for p in result.paths} == dict.fromkeys(
            (b"bad.csv", b"fake.npy", b"good.csv"), "changed"
        )
        good = next(p for p in result.paths if p.path == b"good.csv")
        assert counts(good) == (1, 1, 1)
        assert sorted((e.kind, e.subject.split()[0]) for e in result.failures) == [
            ("table", "bad.csv"),
            ("table", "fake.npy"),
        ]
        assert "pickle" in "".join(e.message for e in result.failures)


def test_a_request_that_makes_no_sense_ends_the_run(flow: Flow) -> None:
    flow.version({"t.csv": table(OLD)}, "t.csv")
    flow.write({"t.csv": table(NEW)})
    with flow.repo() as repo, pytest.raises(UsageError):
        diff(repo, ["t.csv"], read=ReadOptions(format="xls"))


def test_the_same_values_written_anew_are_no_difference(flow: Flow) -> None:
    flow.version({"t.csv": table(OLD)}, "t.csv")
    flow.write({"t.csv": table(OLD).replace(b"\n", b"\r\n")})
    with compared(flow, "t.csv") as result:
        path = only(result)
        assert path.status == "changed" and not path.differs and result.equal


def test_a_renamed_suffix_and_a_kind_of_its_own_are_no_failure(flow: Flow) -> None:
    flow.version({"x.bin": b"1" * 100}, "x.bin")
    flow.write({"x.bin": b"2" * 100})
    with compared(flow, "x.bin") as result:
        path = only(result)
        assert (path.table, path.tensors, path.new_bytes) == (None, None, 100)


def test_everything_is_closed_with_the_result(flow: Flow) -> None:
    flow.version({"t.csv": table(OLD), "d/a.csv": table(OLD)}, "t.csv", "d")
    flow.write({"t.csv": table(NEW), "d/a.csv": table(NEW)})

    def open_files() -> set[str]:
        return {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        }

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("only Linux lists open files")
    with flow.repo() as repo:
        with diff(repo, tables=True) as result:
            assert any(name.endswith("t.csv") for name in open_files())
            assert result.failures == []
        assert not [name for name in open_files() if name.endswith(".csv")]


def test_plain_files_and_folders_without_a_repository(tmp_path: Path) -> None:
    for name, data in {
        "a/t.csv": table(OLD), "b/t.csv": table(NEW), "a/gone.csv": table(OLD), "a/m.npy": npy(1), "b/m.npy": npy(2),
        "a/bad.csv": b"id\n1,2\n", "b/bad.csv": b"id\n1\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with dvk.diff_files(f"{a}/t.csv", f"{b}/t.csv", key=["id"]) as result:
        assert counts(result.paths[0]) == (1, 1, 1) and "1.0" not in result._repr_html_()
    with diff_files(a, b, tables=True) as result:
        inside = {os.path.basename(p.path): p for p in result.paths[0].inside}
        assert set(inside) == {b"t.csv", b"gone.csv", b"m.npy"}
        assert [e.kind for e in result.failures] == ["table"]
