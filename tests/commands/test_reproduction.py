"""A result is reproduced from exact bytes: clone a commit, `dvk pull`, run the script, get what was recorded."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from flowkit import Flow

TRAIN = '''
"""A logistic regression by gradient descent, from a fixed seed: the same bytes wherever it runs."""
import sys
import numpy as np

with open(sys.argv[1], "rb") as file:
    table = np.loadtxt(file, delimiter=",", skiprows=1)
rng = np.random.default_rng(20240501)
order = rng.permutation(len(table))
x, y = table[order, :3], table[order, 3]
weights = rng.normal(size=3)
for _ in range(10):
    # Sums in a fixed order, since a BLAS may add in another one on another machine.
    scores = np.array([float(np.add.reduce(row * weights)) for row in x[:200]])
    errors = 1 / (1 + np.exp(-scores)) - y[:200]
    for j in range(3):
        weights[j] -= 0.1 * float(np.add.reduce(errors * x[:200, j])) / 200
with open(sys.argv[2], "wb") as file:
    np.save(file, np.round(weights, 9))
'''

FROM_THE_VERSION = """
import sys, dvk, runpy
with dvk.open("data/train.csv", rev=sys.argv[1]) as version, open("input.csv", "wb") as copy:
    copy.write(version.read())
sys.argv = ["train.py", "input.csv", sys.argv[2]]
runpy.run_path("train.py")
"""


def rows(seed: int) -> bytes:
    chosen = random.Random(seed)
    lines = ["a,b,c,y"]
    for _ in range(3000):
        a, b, c = (chosen.uniform(-1, 1) for _ in range(3))
        lines.append(f"{a:.6f},{b:.6f},{c:.6f},{int(a + 2 * b - c > 0)}")
    return "\n".join(lines).encode()


def run(flow: Flow, *argv: str) -> None:
    done = subprocess.run([sys.executable, *argv], cwd=flow.top, env=flow.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_clean_room_gets_the_recorded_bytes(tmp_path: Path) -> None:
    author = Flow(tmp_path / "author", tmp_path)
    author.write({"train.py": TRAIN.encode(), "reproduce.py": FROM_THE_VERSION.encode()})
    author.git("add", "train.py", "reproduce.py")
    for version in (1, 2):
        author.write({"data/train.csv": rows(version), "models/.keep": b""})
        run(author, "train.py", "data/train.csv", "models/weights.npy")
        author.add("data/train.csv", "models")
        author.commit(f"run {version}")
        author.git("tag", f"run-{version}")
    author.push()
    recorded = {}
    for version in (1, 2):
        author.switch(f"run-{version}")
        recorded[version] = author.read("models/weights.npy")
    assert recorded[1] != recorded[2]

    room = author.clone(tmp_path / "room")
    for version in (1, 2):
        room.git("checkout", "-q", f"run-{version}")
        code, said = room.dvk("pull")
        assert code == 0, said
        room.remove("models/weights.npy")
        run(room, "train.py", "data/train.csv", "models/weights.npy")
        assert room.read("models/weights.npy") == recorded[version]
        assert room.one("models").clean and room.one("data/train.csv").clean

    # And without a checkout: the version is read as it is, whatever the work tree holds.
    bare = author.clone(tmp_path / "bare")
    run(bare, "reproduce.py", "run-1", "again.npy")
    assert bare.read("again.npy") == recorded[1] and not bare.exists("data/train.csv")
