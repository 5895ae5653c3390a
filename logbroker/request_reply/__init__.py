"""Request and reply: a question on a topic, answered by one of those who respond to it.

    requester                                     responder (any number of threads and processes)
    ─────────                                     ─────────
    is anybody there?        live_responders      says that it is there
    request, with reply-to,
    correlation id, deadline ──► the topic ────►  a queue: one of them gets it      responder
    reader of the own        ◄── __reply-…  ◄──   reply, or what went wrong
    reply topic  (requester)                      done with the request
    whose reply is it?       correlation

Requests and replies are plain records with plain headers (``headers``), so that a client of another kind can ask
or answer. A request is done with only after its reply was written: whoever dies in between leaves it to another.

exchange          what one broker object asks and answers
requester         the asking side
responder         the answering side
correlation       pure: whose reply it is
messages          pure: ``Request`` and ``Reply``, as users see them
headers           pure: what is in the records
topics            the two topics: names, configuration, end
live_responders   who responds to a topic now
errors            pure: how a request fails
"""
