"""Malformed input against the real entry points: no traceback, no hang, no code run, no file outside."""
