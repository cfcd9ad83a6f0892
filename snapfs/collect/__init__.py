"""L4 collect: who is alive, what may be freed, and the proof. Never imports volume or tree."""
