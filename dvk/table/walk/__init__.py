"""Both sides read ahead and walked side by side, so that rows in step and equal drop out."""
