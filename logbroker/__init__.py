"""A durable log broker that lives inside your Python processes."""
