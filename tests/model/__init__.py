"""Model of the deletion protocol and its exhaustive search. Pure Python; imports nothing of snapfs.

What it is. A small machine that can do, one step at a time and in every order, what a writer, a person and
the collector can do to a store, and a breadth-first search through all states it can reach. In each state it
asks: is there still a readable copy of everything that a root needs? Then it takes one rule of the protocol
away and asks again: now the search must find the loss, or the guard that caught it. A model that cannot fail
proves nothing.

How to read it, in this order: `state` (what a state is), `rules` (what can be taken away), `writer`,
`collector` and `packs` (the table of steps; each has a name, a guard and an effect), `search` (the questions
and the search), `cases` (configurations; which rule is taken away where, and what must come out).

How it corresponds to the code. A step is a stretch that nothing can come between: one catalog transaction,
one sync of the journal, one look-up. Its name uses the glossary: put, flush, fsync, commit, request,
undelete, horizon, recount 1, plan, quarantine, recount 2, receipt, freed, last look, unlink, repack, repoint,
restore, latch.

What it leaves out. Time: grace may be zero, so no finding rests on waiting. Bytes on the disk below: a copy
is there or not (the crash suite cuts the power at every sync). Contents are atoms: one file per volume,
holding nothing or one of two contents. The inside of a recount: recount 1 reads all roots in one step and
answers in a later one; recount 2 is one step. Numbers: two contents, at most two volumes, two snapshots, two
copies of each id (three where copies share packs), one flush and one commit at a time. After a latch nothing
is explored further: a latched collector frees nothing.

Where copies do not share packs, the order of the copies of an id means nothing and states are sorted by it:
the only symmetry that is used.
"""
