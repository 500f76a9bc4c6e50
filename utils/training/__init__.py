"""Training: what is trained (stage), opening it (session), its steps (run, trainer, optimizers), its state and logs."""
