"""What is measured is the command's own: its time, its memory, its error."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure import Command, StepFailed, holding, run, synced_write_rate


def python(code: str, folder: Path) -> Command:
    return Command((sys.executable, "-S", "-c", code), str(folder), {"PATH": os.defpath})


def test_memory_is_the_commands_and_not_its_parents(tmp_path: Path) -> None:
    ballast = bytearray(os.urandom(1 << 20)) * 200
    small = run(python("pass", tmp_path), scratch=str(tmp_path)).rss_bytes
    big = run(python("b = b'x' * 100_000_000", tmp_path), scratch=str(tmp_path)).rss_bytes
    assert small < 50e6 < 100e6 <= big < len(ballast)


def test_time_and_output_are_kept(tmp_path: Path) -> None:
    cost = run(python("import time; time.sleep(0.2); print('done')", tmp_path), scratch=str(tmp_path))
    assert cost.stdout == "done\n"
    assert 0.2 <= cost.wall_s < 5
    assert cost.user_s + cost.system_s < cost.wall_s + 0.1


def test_an_error_says_which_command_and_why(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="exit code 3: no such thing"):
        run(python("import sys; print('no such thing', file=sys.stderr); sys.exit(3)", tmp_path), scratch=str(tmp_path))
    with pytest.raises(StepFailed, match="not started"):
        run(Command(("no-such-program",), str(tmp_path), {"PATH": os.defpath}), scratch=str(tmp_path))


def test_a_command_that_takes_too_long_ends_with_all_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    script = f"(sleep 1; touch {mark}) & wait"
    with pytest.raises(StepFailed, match="not done after"):
        run(Command(("sh", "-c", script), str(tmp_path), {"PATH": os.defpath}), scratch=str(tmp_path), limit_s=0.3)
    time.sleep(1.2)
    assert not mark.exists()


def test_a_hard_link_is_counted_once_and_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "a"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"12345")
    os.link(folder / "x", folder / "y")
    (folder / "z").write_bytes(b"1")
    held = holding(str(tmp_path / "store"), str(tmp_path / "none"))
    assert (held.size_bytes, held.files) == (6, 2)


def test_the_write_rate_leaves_nothing_behind(tmp_path: Path) -> None:
    assert synced_write_rate(str(tmp_path), size_bytes=1 << 20) > 0
    assert os.listdir(tmp_path) == []
