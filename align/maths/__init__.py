"""The equations. Pure functions of tensors and floats: no config, no model, no tokenizer, no logger."""
