# `just` runs what continuous integration runs.
default: test

test *ARGS:
    scripts/test {{ARGS}}

try:
    scripts/try

fix:
    ruff check --fix
    ruff format

# Write the documents that are generated from code.
docs:
    python scripts/make_reference.py
