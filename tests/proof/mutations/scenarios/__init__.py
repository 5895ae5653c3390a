"""Small workloads, one for each rule: a scenario fails when its rule is broken, and runs in about a second."""
