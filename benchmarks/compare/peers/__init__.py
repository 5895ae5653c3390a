"""One module a product."""
