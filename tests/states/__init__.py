"""Every pair of states that a store can be in, and every command: python -m tests.states."""
