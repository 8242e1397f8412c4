"""What a run ships: float weights without quantization nodes, and the encodings beside them."""
