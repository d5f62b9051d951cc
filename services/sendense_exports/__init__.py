"""NBD exports: the catalogue service, and nbdd, the daemon that makes its configuration true."""
