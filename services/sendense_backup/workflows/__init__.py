"""The durable workflows, one module each: a prose header, then the steps with what they do and what undoes them."""
