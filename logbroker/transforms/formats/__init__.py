"""Between bytes and decoded values: one module a format, each imported when a pipeline has a step of it."""
