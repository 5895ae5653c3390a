"""Point-to-point queues: competing consumers of a subscription, each message in one hand at a time.

state         pure: what happens to a message, over an ordered table of rows
rows          pure: the bytes of that table
runs          pure: its runs of messages that are not done, and their indexes
done_offsets  pure: its bits for those that are
arranging     pure: what messages say of their own delivery
order_keys    pure: whose turn it is among messages of one key
lasting       pure: what of it is journaled
undecided     pure: what was settled for a transaction that nobody may ever decide
settings      pure: what a subscription asks of its queue
settlement    pure: several outcomes for messages of one owner, all at once
partition     one partition of one subscription: the state machine run over view and journal
looks         what is found in it
owners        in whose hands a message is
reading       records by ranges of offsets, and which of them are to be delivered at all
aftermath     what dead processes left behind: leases, and what they had settled and not decided
burial        dead letters: the copy and the end of the original in one transaction
handles       pure: a message in somebody's hands, as text
settling      what is to be settled, and what is in other hands by now
message       a message in a consumer's hands, and several together
consumer      ``Queue``, as users see it
"""
