"""Text as tables: bytes at random access, where records lie, and CSV and JSON Lines as exact values."""
