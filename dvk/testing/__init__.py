"""Parts for testing stores and media, ours and other people's: suites, faults, a real S3 server."""
