# Shared by scripts/test and scripts/try. Works in bash 3.2 (macOS) and later.

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# The first Python 3.11 or later; PYTHON names another one.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        [ -n "$candidate" ] || continue
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or later found" "install one, or name it: PYTHON=/path/to/python3.12 $0"
}

# quietly WHAT COMMAND...: one line when it works, all of its output when it does not.
quietly() {
    local what=$1 began=$SECONDS log status=0
    shift
    log=$(mktemp "${TMPDIR:-/tmp}/dvk-script.XXXXXX")
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        cat "$log" >&2
        rm -f "$log"
        printf '%s: failed (exit code %s)\n' "$what" "$status" >&2
        exit 1
    fi
    rm -f "$log"
    printf '%s: ok, %s s\n' "$what" "$((SECONDS - began))"
}

# openly WHAT COMMAND...: the same, for what takes minutes: where somebody looks on, its output is shown as it comes.
openly() {
    [ -t 1 ] || { quietly "$@"; return; }
    local what=$1 began=$SECONDS status=0
    shift
    "$@" </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        printf '%s: failed (exit code %s)\n' "$what" "$status" >&2
        exit 1
    fi
    printf '%s: ok, %s s\n' "$what" "$((SECONDS - began))"
}

# memory_folder: a fresh folder in memory, where there are 2 GB for it and programs may run there; else nothing. For tests:
# they sync thousands of times, and what they promise does not hang on which disk answers.
memory_folder() {
    local free folder
    free=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $4}') || return 0
    [ "${free:-0}" -ge 2097152 ] || return 0
    folder=$(mktemp -d /dev/shm/dvk-test.XXXXXX 2>/dev/null) || return 0
    if printf '#!/bin/sh\n' >"$folder/program" && chmod +x "$folder/program" && "$folder/program" 2>/dev/null; then
        rm "$folder/program"
        printf '%s\n' "$folder"
    else
        rm -rf "$folder"
    fi
}

# environment DIR WHAT: a virtual environment with WHAT (a pip requirement, editable) installed. Quick when nothing changed:
# the stamp holds what an installation depends on, and a checkout that moved takes its environment for stale.
environment() {
    local dir=$1 what=$2 python wanted
    wanted="$PWD $what $(cksum pyproject.toml)"
    if [ -x "$dir/bin/python" ] && "$dir/bin/python" -c 'import dvk' >/dev/null 2>&1 &&
        [ "$(cat "$dir/installed" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    python=$(find_python)
    rm -rf "$dir"
    "$python" -m venv "$dir" >/dev/null ||
        fail "cannot make a virtual environment in $dir" "on Debian and Ubuntu: apt install python3-venv"
    quietly "install into $dir" "$dir/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-input -e "$what"
    printf '%s\n' "$wanted" >"$dir/installed"
}
