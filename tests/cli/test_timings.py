"""`--timings` and DVK_TIMINGS: a table for people, an object for programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_cli import dvk
from projects import Project, noise


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.dvk("init")
    made.write(
        {"t.csv": b"".join(b"%d,%d\n" % (i, i * i) for i in range(200_000)), "im/a": b"one", "im/b": noise(1000, 2)}
    )
    return made


def test_the_table_names_the_stages_of_an_add(project: Project) -> None:
    size = (project.top / "t.csv").stat().st_size
    done = project.dvk("add", "--timings", "t.csv", "im")
    assert done.code == 0 and "staged 2 pointers" in done.out and "cpu s" not in done.out
    lines = done.err.splitlines()
    assert lines[0].split() == ["stage", "wall", "s", "cpu", "s", "bytes", "count", "rate"]
    names = [line[:12].strip() for line in lines[1:]]
    for name in ("start-up", "git", "scan", "read", "cut", "hash", "look-up", "encode", "verify", "write", "fsync"):
        assert name in names
    assert names[-2:] == ["rest", "in all"]
    found = project.dvk("status", "--json", "--timings").document["timings"]
    stages = {s["stage"]: s for s in found["stages"]}
    assert stages["scan"]["count"] == 2 and stages["stat cache"]["count"] >= 2
    assert "read" not in stages or stages["read"]["size"] < size  # no content was read


def test_programs_get_an_object_and_standard_error_stays_empty(project: Project) -> None:
    done = project.dvk("--timings", "--json", "add", "t.csv")
    timings = done.document["timings"]
    stages = {s["stage"]: s for s in timings["stages"]}
    assert done.err == ""
    size = (project.top / "t.csv").stat().st_size
    assert stages["cut"]["size"] == size <= stages["read"]["size"] < size + 10_000
    assert stages["encode"]["count"] >= 3 and stages["encode"]["size"] >= stages["verify"]["size"] >= size
    assert 0 < stages["encode"]["cpu_seconds"] <= timings["cpu_seconds"]
    assert set(timings) == {"wall_seconds", "cpu_seconds", "rest_cpu_seconds", "stages"}


def test_the_variable_asks_as_well_and_nobody_else_gets_any(project: Project) -> None:
    project.environ["DVK_TIMINGS"] = "1"
    assert "in all" in project.dvk("add", "im").err
    project.environ["DVK_TIMINGS"] = ""
    done = project.dvk("status", "--json")
    assert "timings" not in done.document and done.err == ""


def test_a_verb_that_fails_tells_where_its_time_went(project: Project) -> None:
    done = project.dvk("add", "--timings", "nothing-here")
    assert done.code != 0
    assert done.err.splitlines()[0].startswith("error: ") and done.err.splitlines()[-1].startswith("in all")
    assert dvk("where", "--timings").err.splitlines()[-1].startswith("in all")
