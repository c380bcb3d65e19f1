"""`dvk` and `python -m dvk`.

`dvk --version` is what scripts, editors and shells ask for in passing, so it is answered before anything is
imported.
"""

import sys


def main() -> None:
    """Run the command line in `sys.argv` and exit."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from dvk import __version__

        print(f"dvk {__version__}")
        return
    from dvk.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
