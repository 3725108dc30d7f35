"""What an experiment would need, before it is run: arithmetic on a model's dimensions, without the model."""
