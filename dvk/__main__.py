"""`dvk` and `python -m dvk`.

`dvk --version` is what scripts, editors and shells ask for in passing, so it is answered before anything is
imported.

Two settings have to come before the imports. numpy's linear algebra, which dvk has no use for, starts a thread a core,
and these spin: 80 ms of the processor in each run. And Python looks for garbage after each 700 new objects, though
imports make tens of thousands and none of them is any: 6 ms of each start, and more where a folder has many files. Both
are settings of a whole process, so they are the program's and not the library's: a notebook that imports dvk keeps its
own.
"""

import gc
import os
import sys

_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def main() -> None:
    """Run the command line in `sys.argv` and exit."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from dvk import __version__

        print(f"dvk {__version__}")
        return
    if sys.argv[1:3] == ["hooks", "run"] and len(sys.argv) > 3 and "--json" not in sys.argv:
        # Git runs hooks all the time, and as a rule no pointer moved: see dvk/workspace/git_moved.py.
        from dvk.workspace.git_moved import nothing_to_do

        if nothing_to_do(sys.argv[3], sys.argv[4:], os.environ, os.getcwdb()):
            return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 50)
    from dvk.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
