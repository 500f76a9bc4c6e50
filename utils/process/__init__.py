"""The process: ranks (distributed), Ctrl-C and SIGTERM (interruption), a stopwatch (timing), seeds (randomness)."""
