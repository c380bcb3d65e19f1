"""One module a verb: functions that take records and return records, and emit events. They print nothing."""
