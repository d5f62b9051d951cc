"""Sendense's public identifiers: backup ids, VM context ids and NBD export names, made by one pure rule each."""
