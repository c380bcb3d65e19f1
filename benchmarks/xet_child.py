"""Xet's engine as a program, for lack of one: `add STORE LIST PATH` and `restore STORE LIST FOLDER`.

The released hf-xet wheel takes `local://FOLDER` instead of its server. `add` uploads a file, or all files of a folder,
in one commit and writes to LIST what is needed to get them back; `restore` downloads them. Runs in the peers'
environment, which has no dvk.
"""

import importlib.metadata
import json
import os
import sys

import hf_xet


def add(store: str, kept: str, path: str) -> None:
    files = [path] if os.path.isfile(path) else sorted(os.path.join(at, n) for at, _, ns in os.walk(path) for n in ns)
    with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{store}") as commit:
        running = [(f, commit.start_upload_file(os.path.abspath(f))) for f in files]
    done = [(f, upload.result().xet_info) for f, upload in running]
    with open(kept, "w") as f:
        json.dump([(path, info.hash, info.file_size) for path, info in done], f)


def restore(store: str, kept: str, folder: str) -> None:
    with open(kept) as f:
        wanted = json.load(f)
    with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{store}") as group:
        for path, content_hash, size in wanted:
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            group.start_download_file(hf_xet.XetFileInfo(content_hash, size), target)


if sys.argv[1] == "--version":
    print("hf-xet", importlib.metadata.version("hf-xet"))
else:
    {"add": add, "restore": restore}[sys.argv[1]](*sys.argv[2:])
