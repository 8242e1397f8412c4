"""Grids, quantizers, calibration, placement, and the simulation that puts them together."""
