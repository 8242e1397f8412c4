"""A step and a target of one's own, outside of qatflow: what `steps:` and `target:` of a recipe can name."""
