"""`dvk` and `python -m dvk`.

`dvk --version` is what scripts, editors and shells ask for in passing, so it is answered before anything is
imported.

Two settings have to come before the imports, and one before the work. numpy's linear algebra, which dvk has no use for,
starts a thread a core, and these spin: 80 ms of the processor in each run. And Python looks for garbage after each 700
new objects, though imports make tens of thousands and none of them is any: 6 ms of each start, and more where a folder
has many files. Then, the C library gives memory of a megabyte back to the system as soon as it is free, and gets it
back as pages that have to be zeroed: for each block that is decoded, 0.4 ms on top of 0.6 ms. These are settings of a
whole process, so they are the program's and not the library's: a notebook that imports dvk keeps its own.
"""

import gc
import os
import sys

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_KEPT_FREE_BYTES = 256 << 20
_LARGEST_KEPT_BYTES = 32 << 20  # the most that glibc takes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def main() -> None:
    """Run the command line in `sys.argv` and exit."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from dvk import __version__

        print(f"dvk {__version__}")
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 50)
    from dvk.cli.app import main as run

    _keep_free_memory()
    run()


def _keep_free_memory() -> None:
    """Have the C library keep freed memory for the next block; only glibc can be told, others do as they do."""
    import ctypes  # numpy imports it as well

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)


if __name__ == "__main__":
    main()
