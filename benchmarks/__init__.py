"""How dvk compares: the same work, done by dvk and by the tools people use today, side by side in one run.

    python -m benchmarks peers              # DVC and hf-xet into an environment of their own
    python -m benchmarks run --scale 0.05   # a quick look; without --scale the real thing
    python -m benchmarks marks docs/benchmarks/results.json

Seconds of one machine say little about another, so what counts are ratios within a run. Each command is a whole
process, started the way a user starts it, in a fresh Git repository, on inputs the system has just read. The tools
take turns within a round, so a slow minute of the machine hits all of them, and the median over rounds is kept.
`docs/benchmarks.md` says how to read the result.

workloads    what is versioned, and how it is edited (make_*: the bytes, deterministic)
launch       one process, measured from outside
tools        what the verbs are called in dvk, DVC, Git LFS, restic, Xet and cp
scenario     which commands run in which order, and what is verified
results      the samples as JSON, medians
report, chart, marks    a result as Markdown, SVG, reached or missed
memory       a 4 GB file under 400 MB of memory
"""
