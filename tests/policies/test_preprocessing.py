"""What features extractors are given, beside Stable-Baselines3's `preprocess_obs`."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs

from rlopt.policies.preprocessing import preprocessed

IMAGE = spaces.Box(0, 255, (3, 8, 6), np.uint8)
SPACES = {
    "image": IMAGE,
    "bytes that are no image": spaces.Box(0, 9, (3, 8, 6), np.uint8),
    "vector": spaces.Box(-1, 1, (5,)),
    "choice": spaces.Discrete(4),
    "dictionary": spaces.Dict(image=IMAGE, vector=spaces.Box(-1, 1, (2,)), choice=spaces.MultiDiscrete([2, 3])),
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_the_same_numbers_as_stable_baselines3(name, normalize):
    space = SPACES[name]
    space.seed(0)
    drawn = [space.sample() for _ in range(7)]
    if isinstance(space, spaces.Dict):
        batch = {key: torch.as_tensor(np.stack([x[key] for x in drawn])) for key in space.spaces}
        ours, theirs = preprocessed(batch, space, normalize), preprocess_obs(batch, space, normalize)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        return
    batch = torch.as_tensor(np.stack(drawn))
    assert torch.equal(preprocessed(batch, space, normalize), preprocess_obs(batch, space, normalize))


def test_the_channels_of_a_pixel_lie_side_by_side():
    batch = torch.randint(0, 256, (4, 3, 8, 6), dtype=torch.uint8)
    ours = preprocessed(batch, IMAGE, True)
    assert ours.shape == batch.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert batch.is_contiguous()  # as it was
