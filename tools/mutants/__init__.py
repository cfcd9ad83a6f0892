"""Mutants: does any small mistake in the code that decides about deletion lose data? A development tool;
it needs the checkout and mutmut.

    python -m tools.mutants [--limit N] [--seed N] [--only PATH] [--out FILE]

Mutated is everything in snapfs/collect, and the code that puts chunks, takes the horizon and drives the
collector (TARGETS). The mistakes are those of mutmut 3, a standard mutation tool, on every line (its own
runner leaves out decorated functions, default values and module constants; here they are in), and a second
set that it does not make. Half of the decisions stand in SQL: comparisons turned round, AND for OR, IN for
NOT IN, a condition or an arm of a union left out. And a guard or a step left out: a call, an assertion or
a raise becomes nothing, a condition always holds or never.

Each mutant runs in a forked process, on a store in memory, through the battery (tests/mutants/battery.py):
one history through every step of a deletion. The detector (tests/mutants/detector.py, which shares nothing
but byte decoders with what it judges) then looks, from the unmutated parent, for everything that was
promised. Outcomes:

    lost      something promised is not there any more, whatever else happened: there must be none
    killed    the battery noticed: an error, an alarm, an expectation that did not hold, or no end in time
    survived  nothing lost, and the battery saw no difference
    unreached the battery does not execute the line: it says nothing about these; they do not count as safe

Results go to a file of JSON lines as they come; `--out` with an old file goes on where it stopped. A limit
takes an even sample of the reached ones, decided by the seed."""
