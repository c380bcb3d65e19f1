"""The answer: cells old and new, statistics, full values of changed rows, questions asked later."""
