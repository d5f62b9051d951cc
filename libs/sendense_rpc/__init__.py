"""How Sendense's processes talk: one server bootstrap, channels, errors, identities, validation and logs.

A service's `main` calls `sendense_rpc.server.serve`; everything else in a service that must not know gRPC uses only
`sendense_rpc.errors`, which imports none of it.
"""
