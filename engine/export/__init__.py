"""A run's best model as a file for other runtimes."""
