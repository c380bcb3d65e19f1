"""The readers people use get an old version, from a clone that never pulled it, out of a real bucket.

And no more than that: what crosses the network is at most 1.1 times the encoded bytes of the blocks that they touch.
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from flowkit import Flow, csv, noise
from readkit import Counted, reading

import dvk
from dvk.filesystem import DvkFileSystem
from dvk.testing.s3server import S3Address

pa = pytest.importorskip("pyarrow")
ROWS = 160_000
IMAGES = [noise(3000, i) for i in range(200)]


def table(version: int) -> Any:
    rng = np.random.default_rng(7)
    columns = {"id": np.arange(ROWS), "year": 2000 + np.arange(ROWS) % 4}
    columns |= {f"x{i}": rng.random(ROWS) + version for i in range(6)}
    return pa.table(columns)


def parquet(data: Any) -> bytes:
    out = io.BytesIO()
    pa.parquet.write_table(data, out, row_group_size=ROWS // 4, compression="zstd")
    return out.getvalue()


@pytest.fixture(scope="module")
def flow(s3: S3Address, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    import pyarrow.parquet

    bucket = f"readers{os.getpid()}"
    s3.create_bucket(bucket)
    home = tmp_path_factory.mktemp("readers")
    flow = Flow(home / "repo", home, remote=f"s3://{bucket}/team", environ=s3.env)
    flow.write({f"images/{i:03}.bin": data for i, data in enumerate(IMAGES)})
    for version in (1, 2):
        data = table(version)
        flow.write({"data/t.csv.gz": gzip.compress(csv(40_000, version)), "data/t.parquet": parquet(data)})
        flow.write({"data/t.csv": csv(40_000, version)})
        for year in range(2000, 2004):
            part = data.filter(pyarrow.compute.equal(data["year"], year)).drop_columns(["year"])
            flow.write({f"parts/year={year}/a.parquet": parquet(part)})
        flow.add("images", "data/t.csv.gz", "data/t.csv", "data/t.parquet", "parts")
        flow.commit(f"version {version}")
        flow.git("tag", f"v{version}")
    flow.push()
    return flow


@pytest.fixture
def counted(flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """In a fresh clone, which is the working folder."""
    clone = flow.clone(tmp_path / "clone", environ={"DVK_CACHE_HOME": str(tmp_path / "cache")})
    monkeypatch.chdir(clone.top)
    with reading(clone.environ) as counted:
        yield counted
    assert not os.path.exists(clone.at(".git/dvk/store/p"))  # nothing was pulled


def frugal(counted: Counted) -> bool:
    assert counted.data_bytes > 0
    return counted.data_bytes <= 1.1 * counted.touched


def test_pandas(counted: Counted) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv("dvk://v1@data/t.csv.gz")
    assert frame.equals(pandas.read_csv(io.BytesIO(csv(40_000, 1))))
    assert frugal(counted)
    counted.reset()
    two = pandas.read_parquet("dvk://v1@data/t.parquet", columns=["x3"])
    assert np.array_equal(two["x3"], table(1)["x3"]) and frugal(counted)
    assert counted.data_bytes < 0.6 * len(parquet(table(1)))  # one of six columns, in blocks of a megabyte
    whole = pandas.read_parquet("dvk://v2@parts")
    assert len(whole) == ROWS and sorted(whole["year"].astype(int).unique()) == [2000, 2001, 2002, 2003]


def test_pyarrow(counted: Counted) -> None:
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    fs = DvkFileSystem(rev="v1")
    assert pq.read_table("data/t.parquet", filesystem=fs).equals(table(1)) and frugal(counted)
    counted.reset()
    for source in (
        ds.dataset("parts", filesystem=fs, partitioning="hive"),
        ds.dataset("fsspec+dvk://v1@parts", partitioning="hive"),
    ):
        found = source.to_table(columns=["id"], filter=ds.field("year") == 2003)
        assert found["id"].to_pylist() == list(range(3, ROWS, 4))
        assert source.count_rows() == ROWS
    assert frugal(counted)
    assert counted.data_bytes < len(parquet(table(1)))


def test_duckdb(counted: Counted) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as con:
        con.register_filesystem(fsspec.filesystem("dvk"))
        one = con.sql("select count(*), sum(x1) from 'dvk://v1@data/t.parquet' where id >= 150000").fetchall()
        expected = table(1)["x1"].to_numpy()[150_000:]
        assert one[0][0] == 10_000 and one[0][1] == pytest.approx(expected.sum())
        assert frugal(counted), (counted.data_bytes, counted.touched)
        counted.reset()
        both = (
            "select (select sum(x1) from 'dvk://v2@data/t.parquet') - (select sum(x1) from 'dvk://v1@data/t.parquet')"
        )
        assert con.sql(both).fetchall()[0][0] == pytest.approx(ROWS)
        names = con.sql("select distinct filename from read_parquet('dvk://v1@parts/*/*.parquet', filename=true)")
        assert sorted(names.fetchall()) == [(f"dvk://v1@parts/year={year}/a.parquet",) for year in range(2000, 2004)]
        rows = con.sql("select count(*), max(price) from read_csv('dvk://v1@data/t.csv')").fetchall()
        assert rows[0][0] == 40_000
        assert frugal(counted), (counted.data_bytes, counted.touched)


def test_polars(counted: Counted) -> None:
    polars = pytest.importorskip("polars")
    import pyarrow.dataset as ds

    with dvk.open("data/t.parquet", rev="v1") as file:
        frame = polars.read_parquet(file, columns=["id", "x2"])
    assert np.array_equal(frame["x2"].to_numpy(), table(1)["x2"]) and frugal(counted)
    counted.reset()
    assert len(polars.read_csv(dvk.open("data/t.csv", rev="v1"))) == 40_000 and frugal(counted)
    counted.reset()
    lazy = polars.scan_pyarrow_dataset(ds.dataset("parts", filesystem=DvkFileSystem(rev="v1"), partitioning="hive"))
    found = lazy.filter(polars.col("year") == 2001).select("id").collect()
    assert found["id"].to_list() == list(range(1, ROWS, 4)) and frugal(counted)
    path = dvk.local_path("data/t.parquet", rev="v1")
    assert polars.scan_parquet(path).select(polars.len()).collect().item() == ROWS


def test_huggingface_datasets(counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    options: dict[str, Any] = {"split": "train", "cache_dir": str(tmp_path / "hf")}
    one = datasets.load_dataset("parquet", data_files="dvk://v1@parts/*/*.parquet", **options)
    assert len(one) == ROWS and one[0]["x1"] == table(1)["x1"][0].as_py()
    assert frugal(counted)
    two = datasets.load_dataset("parquet", data_files="dvk://v2@parts/*/*.parquet", **options)
    assert two[0]["x1"] == table(2)["x1"][0].as_py()  # not what was cached of the other version
    counted.reset()
    stream = datasets.load_dataset("csv", data_files="dvk://v1@data/t.csv", streaming=True, **options)
    assert next(iter(stream))["id"] == 0 and counted.data_bytes < len(csv(40_000, 1))


class Images:
    """A map-style dataset; what it holds travels to workers."""

    def __init__(self, fs: DvkFileSystem) -> None:
        self.fs = fs
        self.names = fs.ls("images", detail=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[int, int]:
        data = self.fs.cat_file(self.names[i])
        return len(data), int.from_bytes(data[:3], "big")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_torch_data_loader(counted: Counted, method: str) -> None:
    """Workers get connections of their own, also while the parent has read from the same bucket."""
    data = pytest.importorskip("torch.utils.data")
    images = Images(DvkFileSystem(rev="v1"))
    assert images[0][0] == 3000
    loader = data.DataLoader(
        images, batch_size=20, num_workers=2, multiprocessing_context=multiprocessing.get_context(method), timeout=100
    )
    seen = [pair for sizes, firsts in loader for pair in zip(sizes.tolist(), firsts.tolist(), strict=True)]
    assert seen == [(3000, int.from_bytes(image[:3], "big")) for image in IMAGES]


def test_a_parquet_file_in_ranges(counted: Counted, capsys: pytest.CaptureFixture[str]) -> None:
    """4 KB anywhere: one request for a cold block, none for a warm one."""
    fs = DvkFileSystem(rev="v1")
    content = parquet(table(1))
    with fs.open("data/t.parquet") as file:
        rng = np.random.default_rng(3)
        counted.reset()
        for _ in range(60):
            before, cold = counted.requests, counted.touched
            at = int(rng.integers(0, len(content) - 4096))
            file.seek(at)
            assert file.read(4096) == content[at : at + 4096]
            assert counted.requests - before <= (counted.touched != cold)
        assert frugal(counted)
        before = counted.requests
        for at in range(0, len(content) - 4096, 4096):
            file.seek(at)
            file.read(4096)
        assert counted.requests - before <= 1 + len(content) // (1 << 20)
