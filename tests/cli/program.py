"""The program with the sample verbs, as a process of its own: `python tests/cli/program.py send x`."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))

import sample_verbs

from dvk.cli import app

app.VERBS = sample_verbs.TABLE
app.GROUPS = sample_verbs.GROUPS

if __name__ == "__main__":
    app.main()
