"""One run, from its first step to its last: a step (trainer), the steps of a run (loop), its folder (run), its log."""
