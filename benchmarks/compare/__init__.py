"""How fast is it beside what a user would pick instead, on this machine, on the same work?

    python -m benchmarks.compare                 every piece of work, every contender, about an hour
    python -m benchmarks.compare --quick         the same with a tenth of the time
    python -m benchmarks.compare --work tail     only work whose name has the word in it
    python -m benchmarks.compare --cores 1       all on one core: whoever has threads or a server pays for them

A *contender* is a product in one setting (``sqlite3, synced``). A *work* is what is measured (``produce 100 B``).
The contenders of a work run in turn, A B C A B C …, each time in a new process on a new folder, servers started
anew; the medians of those rounds and their ratios to logbroker are printed, and written as Markdown, JSON and plots.
Nothing is installed and nothing outlives the run. A contender whose program is not there is skipped, and says so.

What makes it fair: the same bytes; the way that each product's own documentation calls the fast one for that work;
and contenders stand in one table with how they sync in their names: who syncs is never ranked below who does not
without a word.
"""
