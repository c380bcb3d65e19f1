"""What of two tables need not be read, because it is equal on both sides: shared chunks, column chunks, segments."""
