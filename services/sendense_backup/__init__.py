"""The backup service: VM contexts, backup jobs, their log and progress, and the durable workflows that run them."""
