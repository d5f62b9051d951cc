"""The public edge: Envoy, its configuration generated from the contracts, and the description of the REST API.

Routes exist per RPC and come from the role options in the protos, so an internal RPC has none. No business logic here.
"""
