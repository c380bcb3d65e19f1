"""Parquet and Arrow files as tables: what their footers say, and values in one plain form."""
