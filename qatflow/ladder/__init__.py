"""The ladder: candidates, what they are measured with, and how they are climbed."""
