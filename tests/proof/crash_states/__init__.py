"""Crash states: at every operation of a program, what a power cut may leave of the disk is opened and judged.

    python -m tests.proof crash-states            bounded: 50,000 distinct states
    python -m tests.proof crash-states --long     2,000,000, in several processes
    python -m tests.proof.crash_states.quick      the states that tell most, until the first broken promise

    module         what it does
    disk           a file system in memory that writes every operation down
    program        uses the library, and notes between the operations what it tries and what it was promised
    workloads      what programs do: scripts, random ones, recovery itself
    states         what a power cut behind an operation may leave: the model of a disk, and what it assumes
    views          … and of the view
    observation    opens such a state by the real recovery, uses it, and says what was found
    judgement      what of that breaks a promise that was made by then
    exploration    goes through a recording, operation by operation

States are told apart by a digest of the whole tree of files. A tree that is found again later in the same recording
is judged again by what was promised meanwhile, and counts once.
"""

from .run import run as run
