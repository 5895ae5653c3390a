"""The steps that are not formats: one module a family."""
