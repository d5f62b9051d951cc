"""The tunnel: agents dial it over SSH, reach the exports leased to them, and offer their gRPC server."""
