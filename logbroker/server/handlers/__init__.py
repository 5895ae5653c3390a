"""One module a family of requests: from a request to its answer."""
