"""The repository service: repositories, layers, chains and restore points, and the on-disk format."""
