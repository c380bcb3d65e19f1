"""Make one item's versions: `python -m benchmarks.make table --scale 0.1 CACHE`. Deterministic, run as a child."""

from __future__ import annotations

import argparse
import os
import shutil

from benchmarks import make_files, make_tables, make_tensors

MAKERS = {
    "table": make_tables.table,
    "model": make_tensors.model,
    "weights-bf16": make_tensors.weights_bf16,
    "weights-fp16": make_tensors.weights_fp16,
    "weights-fp32": make_tensors.weights_fp32,
    "series-safetensors": make_tensors.series_safetensors,
    "series-pt": make_tensors.series_pt,
    "files": make_files.files,
    "mixed": make_files.mixed,
    "many": make_files.many,
}


def main() -> None:
    """Make the item, after removing what an interrupted run may have left of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("maker", choices=MAKERS)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("cache")
    args = parser.parse_args()
    names = (args.maker, "parquet", "parquet-cdc") if args.maker == "table" else (args.maker,)
    for name in names:
        shutil.rmtree(os.path.join(args.cache, name), ignore_errors=True)
        os.makedirs(os.path.join(args.cache, name))
    MAKERS[args.maker](args.cache, args.scale)


if __name__ == "__main__":
    main()
