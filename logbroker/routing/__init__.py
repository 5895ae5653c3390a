"""Routing: bindings have the router write what comes into a topic to other topics as well, exactly once.

plan          pure: from bindings and a record to where it goes, and why; loops
bindings      made, removed and listed, under the journal's lock; how far each reaches
descriptions  what users are told of them
router        the runner: a member of the group ``__router``, one transaction a batch
thread        a router inside ``serve``
explanation   where a given message would go, without writing anything
"""
