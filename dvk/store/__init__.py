"""Content-addressed storage on a backend: chunks, blocks, packs, pages, index, locators, records, sync. Knows no Git."""
