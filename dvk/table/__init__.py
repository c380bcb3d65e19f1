"""Reading tables, and saying exactly what changed between two of them. docs/design/004-table-diff.md is the map.

contract options result     what the parts promise each other, what is asked, what comes out
source open cache           bytes of plain files, which reader a file gets, what earlier diffs learned
text/ columnar/ tensors/    the formats
skip/                       what need not be read, since both sides have it
match/ equal/               which columns and rows correspond, and what it means that values are equal
walk/ pair/ answer/         rows side by side, what is left over joined, cells and statistics of what changed
compare                     all of it from end to end
"""
