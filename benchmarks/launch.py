"""Run one command and write what it cost: `python -S -I launch.py OUT CWD STDOUT STDERR PROGRAM ARGUMENT...`

A process of its own between the benchmark and what it measures, for one reason: Linux starts a process's peak memory
at that of the process it was forked from, so a child of a big parent looks big. This one stays at 10 MB.

Writes JSON: wall_s, user_s, system_s (children that were waited for included), rss_bytes (the largest process) and
exit_code. Kills the whole process group when it is itself told to end.
"""

import json
import os
import signal
import sys
import time


def main() -> None:
    out, folder, stdout, stderr, *command = sys.argv[1:]
    os.chdir(folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, stdout, flags, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, stderr, flags, 0o644),
    ]
    child = 0

    def end(*_: object) -> None:
        if child:
            os.killpg(child, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    started = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setpgroup=0)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB here
    cost = {
        "wall_s": wall,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "rss_bytes": usage.ru_maxrss * unit,
        "exit_code": os.waitstatus_to_exitcode(status),
    }
    with open(out, "w") as f:
        json.dump(cost, f)


main()
