"""Clients of the services that a backup needs. Only here (and at the service's own edge) is gRPC known."""
