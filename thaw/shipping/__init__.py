"""Out: the run folder, and what is done with a finished model."""
