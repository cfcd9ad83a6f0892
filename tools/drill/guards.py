"""Tool: guards: the names of what stops a wrong deletion, and how each is told by what it says. Pure."""

from __future__ import annotations

import re

# Name, what it is, and a pattern of the message with which it stops; the first that fits. Without one it says
# nothing and keeps; a drill sees it in what it did.
GUARDS: dict[str, tuple[str, str]] = {
    'latch': ('nothing is collected until a person has looked', r'the collector stands still'),
    'canary control': ('a recount must find planted chunks alive', r'recount 1: blind|recount 2 is blind'),
    'later recount': ('a recount that needs what is condemned', r'recount 1: (quarantine|freed)'),
    'recount 2': ('who is condemned is mentioned by nobody', r'recount 2: chunk .* is mentioned'),
    'proof': ('after the first slice every reference is looked for', r'the proof after batch'),
    'read alarm': ('reading what is condemned is an alarm', r'P7: chunk .* was read from'),
    'receipt': ('a batch has one receipt, and its catalog knows', r'has a receipt already'),
    'totals': ('what is below a node is counted in its parent and in itself', r'; claimed: level'),
    'root count': ('the roots that a recount sees are those that were frozen', r'root is (missing|there)'),
    'request count': ('the ids of a request are those that it had', r'changed since the horizon: it names'),
    'node count': ('what was to be read was read', r'P10: a (leaf|node) was not read'),
    'read error': ('what cannot be read ends the run', r'cannot (read|list|look|open)|Input/output'),
    'pack list': ('the packs on the disk are those of the catalog', r'packs? .*(not on the disk|missing$)'),
    'horizon': ('a recount is about the epoch that it was asked about', r'older than the horizon|an old one'),
    'standing root': ('the root of what stands is never condemned', r'P1: .* has condemned the root'),
    'limits': ('a plan that takes too much waits for a person', r'L19: '),
    'day over day': ('what is gone must have been asked for', r'L9: '),
    'plan digest': (
        'an approval is for one plan',
        r'has been altered|no plan waits|is not the one that',
    ),
    'one moves': ('one batch moves at a time', r'one moves at a time'),
    'fence': ('each step asks for the state that it needs', r'batch \d+ is (RESTORED|being restored), not'),
    'lock': ('one process owns a store', r'is in use by'),
    'look lock': ('nothing is freed while somebody looks through the store', r'the store is being checked'),
    'suspend check': ('a recount during a suspend is not believed', r'the machine was suspended'),
    'audit head': ('the catalog knows the end of the audit log', r'audit log: '),
    'put record': ('what is put while a recount runs is kept', ''),
    'blind writers': ('who writes does not see what is condemned', ''),
    'trusted clock': ('grace is measured in time that has passed', ''),
    'last look': ('a pack goes when each record in it has a receipt or a copy', ''),
    'recovery': ('what a crash leaves goes back, or on, as a whole', ''),
}


def guard_of(message: str) -> str:
    """Return the name of the guard that says this; the message itself when none does."""
    for name, (_, pattern) in GUARDS.items():
        if pattern and re.search(pattern, message):
            return name
    return f'? {message}'
