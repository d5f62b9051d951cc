"""`sendense-ctl`: what a person types. It does nothing that the API cannot; it talks to the gateway alone."""
