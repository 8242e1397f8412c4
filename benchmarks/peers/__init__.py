"""Other projects' post-training quantization behind one interface; none of them is needed until its `run` is called."""
