"""The catalogue's engine, sessions and naming conventions. Each service defines its own tables in its `store`."""
