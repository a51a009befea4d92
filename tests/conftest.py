"""What all tests share."""

import torch

# The networks here are small: more threads only wait for each other, and much longer where cores are busy.
torch.set_num_threads(1)
