"""What corresponds: columns of both sides, the columns that identify a row, the rows that take part."""
