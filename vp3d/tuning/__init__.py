"""The verb `align`: a run that trains a LoRA of the 2D model on a reward, with its files."""
