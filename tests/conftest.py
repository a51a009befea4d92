"""What all tests share."""

import multiprocessing

import torch

# The networks here are small: more threads only wait for each other, and much longer where cores are busy.
torch.set_num_threads(1)

# Worker processes of all tests are forked from one server that has imported the library already.
multiprocessing.get_context("forkserver").set_forkserver_preload(["rlopt.envs.parallel"])
