"""Bring the peers that pip can bring, and say what is left to the system's own packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from benchmarks.suite import PEERS

PACKAGES = ("dvc[s3]", "hf-xet")
SYSTEM = {"git-lfs": "git-lfs", "restic": "restic"}


def install(work: str) -> int:
    """Make or update the environment `work/peers` with the newest DVC and hf-xet; the exit code.

    They get an environment of their own because DVC pins what dvk uses too. Versions are recorded by each run.
    """
    folder = os.path.join(work, PEERS)
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", *PACKAGES], check=False)
    absent = [package for program, package in SYSTEM.items() if shutil.which(program) is None]
    if absent:
        print(f"still missing: {' '.join(absent)}. On Debian and Ubuntu: apt-get install {' '.join(absent)}")
    return done.returncode
