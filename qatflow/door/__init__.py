"""The door: the command line, what it composes, checks and says."""
