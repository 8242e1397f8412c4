"""What is measured, decided and left of a run, as values and as files."""
