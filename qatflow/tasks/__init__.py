"""Models, data and metrics: what a recipe names. Import from the modules; this file stays free of torch."""
