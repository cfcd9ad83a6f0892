"""Tool: drill: replays the accidents that deletion is guarded against, on a scratch store, and says what
stopped each."""
