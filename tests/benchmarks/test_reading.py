"""The page of a reading benchmark says what was measured, and a wrong answer stands out."""

from __future__ import annotations

from benchmarks.reading import _better, render


def test_the_page_of_a_result() -> None:
    row = {"seconds": 2.0, "right": True, "data_bytes": 11_000_000, "touched_bytes": 10_000_000, "requests": 9}
    row |= {"sent_bytes": 12_000_000, "all_requests": 11}
    worse = row | {"seconds": 3.0, "right": False, "data_bytes": 12_000_000}
    both = _better(row, worse)
    assert (both["seconds"], both["right"], both["data_bytes"]) == (2.0, False, 12_000_000)
    anywhere = {"right": True, "reads": 40, "cold_requests": 39, "cold_blocks": 39, "cold_ms": 5.0}
    anywhere |= {"warm_requests": 0, "warm_us": 80.0}
    page = render(
        {
            "scale": 1.0,
            "rounds": 2,
            "cores": 2,
            "csv_bytes": 10**9,
            "rows": {
                "pandas_gz": row,
                "duckdb_csv": worse,
                "pull": {"seconds": 10.0, "right": True},
                "sequential": {"seconds": 5.0, "right": True},
                "anywhere": anywhere,
            },
        }
    )
    assert "| right | 2.00 | 10.00 | 11.00 | 1.100 | 12.00 | 11 |" in page
    assert "| WRONG |" in page and "2.00 x the speed of pull and read" in page
    assert "39 range requests for 39 cold blocks, 5.0 ms a read; the same places again 25 times: 0 requests" in page
