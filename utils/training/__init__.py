"""A run: one training step (trainer), the loop over all steps (loop), the folder of the run (run), its log (log)."""
