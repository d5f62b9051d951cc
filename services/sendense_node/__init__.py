"""One machine's whole system: prepares the state directory, runs every process, says when it is ready."""
