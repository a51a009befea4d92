"""Tasks for `scripts/train_lm.py`: one with a closed form, one that is learned in minutes, one on a real model."""
