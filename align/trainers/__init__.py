"""What changes weights: the on-policy loop, and the runs that TRL trains."""
