"""How a process lives: alone or among many (distributed), told to stop (interruption), its time, its random numbers."""
