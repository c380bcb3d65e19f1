"""Marks are judged by what was measured, never guessed; reports show what is there."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import chart, marks, report, results
from benchmarks.results import Failure, Result, Sample


def sample(tool: str, wall_s: float, *, item: str = "table", verb: str = "add", round: int = 0, **more: int) -> Sample:
    return Sample(
        item=item,
        verb=verb,
        tool=tool,
        round=round,
        wall_s=wall_s,
        user_s=wall_s,
        system_s=0.0,
        rss_bytes=50_000_000,
        sync_s=0.0,
        **more,
    )


def result(*samples: Sample, scale: float = 1.0, rate: float = 1e9, **more: object) -> Result:
    return Result(
        made="2026-01-01T00:00:00Z",
        scale=scale,
        rounds=3,
        machine={"cpus": "2", "cpu": "a", "memory_bytes": "8", "filesystem": "ext4", "system": "s", "python": "3"},
        versions={"dvk": "dvk 0", "dvc": "3", "cp": "cp"},
        missing={"xet": "python -m benchmarks peers"},
        items={"table": {"title": "table", "bytes": [1000, 1000], "files": [1, 1]}},
        write_rates=[rate],
        samples=list(samples),
        **more,  # type: ignore[arg-type]
    )


TIME = marks.Mark("table", "add", "dvc", 0.5)


def one(mark: marks.Mark, of: Result) -> marks.Judged:
    (judged,) = marks.judge(of, [mark])
    return judged


@pytest.mark.parametrize(("seconds", "reached"), [(4.9, True), (5.1, False)])
def test_a_time_is_compared_with_the_peer_of_the_same_run(seconds: float, reached: bool) -> None:
    judged = one(TIME, result(sample("dvk", seconds), sample("dvc", 10.0)))
    assert judged.reached is reached
    assert judged.ratio == pytest.approx(seconds / 10)


def test_no_mark_on_an_add_lies_under_the_disk() -> None:
    """1.15 x stored bytes at the synced write rate is the least that can be asked."""
    stored = 6_000_000_000
    slow = result(sample("dvk", 6.5, stored_bytes=stored), sample("dvc", 10.0), rate=1e9)
    assert one(TIME, slow).limit == pytest.approx(6.9)
    assert one(TIME, slow).reached
    back = marks.Mark("table", "back", "dvc", 0.5)
    reading = result(sample("dvk", 6.5, verb="back", stored_bytes=stored), sample("dvc", 10.0, verb="back"))
    assert one(back, reading).limit == 5.0


def test_the_median_of_the_rounds_counts() -> None:
    of = result(*(sample("dvk", s, round=n) for n, s in enumerate((1.0, 90.0, 2.0))), sample("dvc", 10.0))
    assert one(TIME, of).value == 2.0


def test_a_missing_peer_is_unknown_and_never_guessed() -> None:
    judged = one(marks.Mark("table", "add", "xet", 0.5), result(sample("dvk", 1.0)))
    assert (judged.reached, judged.why) == (None, "peer missing")
    assert one(TIME, result()).why == "not run"


def test_a_failure_of_dvk_is_a_miss() -> None:
    failure = Failure(item="table", verb="add", tool="dvk", round=0, what="wrong bytes")
    assert one(TIME, result(sample("dvc", 10.0), failures=[failure])).reached is False


def test_a_peer_that_got_fewer_files_is_compared_by_file() -> None:
    mark = marks.Mark("many", "add", "dvc/file", 1 / 8)
    pair = (sample("dvk", 10.0, item="many", files=1000), sample("dvc", 10.0, item="many", files=100))
    assert one(mark, result(*pair)).limit == pytest.approx(12.5)


def test_a_result_survives_being_written(tmp_path: Path) -> None:
    before = result(sample("dvk", 1.0, stored_bytes=5, requests=3))
    results.save(before, str(tmp_path / "r.json"))
    assert results.load(str(tmp_path / "r.json")) == before


def test_items_of_several_runs_keep_the_disk_and_the_day_they_were_measured_with(tmp_path: Path) -> None:
    """A mark of an older item is judged by its own run; what was measured again replaces what was."""
    older = result(
        sample("dvk", 6.5, stored_bytes=6_000_000_000), sample("dvc", 10.0), sample("dvk", 9.0, item="model"), rate=1e9
    )
    older.items["model"] = {"title": "model", "bytes": [1], "files": [1]}
    newer = result(sample("dvk", 1.0, item="model"), rate=5e9)
    newer.made = "2026-02-02T00:00:00Z"
    newer.items = {"model": {"title": "model", "bytes": [1], "files": [1]}}
    origin = results.Origin(made=newer.made, scale=1, rounds=1, write_rates=[5e9], loads=[0.5])
    newer.origins["model"] = origin
    both = results.joined(older, newer)
    assert both.median("model", "add", "dvk", "wall_s") == 1.0
    assert one(TIME, both).limit == pytest.approx(6.9)
    assert both.origins["model"] == origin and both.origins["table"].made == older.made
    results.save(both, str(tmp_path / "r.json"))
    assert results.load(str(tmp_path / "r.json")) == both
    text = report.render(both)
    assert "| model | 2026-02-02T00:00 | 1 | 1 | 5000 MB/s | 0.5 |" in text
    assert "| table | 2026-01-01T00:00 | 1 | 3 | 1000 MB/s | not noted |" in text
    newer.machine["cpus"] = "64"
    with pytest.raises(ValueError, match="another machine"):
        results.joined(older, newer)


def test_a_result_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        results.load(str(tmp_path / "r.json"))


def test_the_report_has_ratios_and_leaves_gaps_where_nothing_was_measured() -> None:
    of = result(sample("dvk", 2.0), sample("dvc", 5.0), sample("dvk", 1.0, verb="status"))
    text = report.render(of)
    assert "| table | first add | **2.00** | 5.00 (2.5x) |" in text
    assert "| table | status, nothing changed | **1.00** |  |" in text
    assert "| xet | not installed, so not measured |" in text


def test_the_page_is_renewed_between_its_marks_only(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    page = tmp_path / "out.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(result(sample("dvk", 2.0)), str(tmp_path / "out"))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and "first add" in text


def test_the_chart_is_a_picture_whose_longest_bar_fits() -> None:
    tree = ElementTree.fromstring(chart.render(result(sample("dvk", 2.0), sample("dvc", 5.0))))
    bars = [float(r.get("width", "0")) for r in tree.iter("{http://www.w3.org/2000/svg}rect")][1:]
    room = chart.PANEL_W - chart.LABEL_W - chart.VALUE_W
    assert bars == pytest.approx([room * 0.4, room])
