"""Disk readers: processes that serve one snapshot disk as NBD on a Unix socket, each described by data."""
