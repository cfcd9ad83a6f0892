"""L4 rescue: verification in the background, and the way back from damage. Frees nothing, ever."""
