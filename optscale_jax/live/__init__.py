"""Live runs: the loop that samples and scores while a policy decides, and a run's directory."""
