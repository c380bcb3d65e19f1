"""What it means that two values are equal, and values and rows in forms in which it is seen at once."""
