"""Content-addressed storage on a backend: chunks, packs, pages, index, locators, records, sync. Knows no Git."""
