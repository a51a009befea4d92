"""What features extractors are given, beside Stable-Baselines3's `preprocess_obs`."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor

from rlopt.policies.actor_critic import ActorCritic, make_policy

IMAGE = spaces.Box(0, 255, (3, 40, 40), np.uint8)
SPACES = {
    "image": IMAGE,
    "bytes that are no image": spaces.Box(0, 9, (3, 40, 40), np.uint8),
    "vector": spaces.Box(-1, 1, (5,)),
    "choice": spaces.Discrete(4),
    "choices": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(3),
    "dictionary": spaces.Dict(image=IMAGE, vector=spaces.Box(-1, 1, (2,)), choice=spaces.MultiDiscrete([2, 3])),
}


class Own(FlattenExtractor):
    """A features extractor of a user's own."""


def preprocessing(space, normalize=True, extractor=FlattenExtractor):
    kwargs = {"features_extractor_class": extractor, "normalize_images": normalize, "net_arch": [2]}
    if isinstance(space, spaces.Dict):
        kwargs.pop("features_extractor_class")
    name = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    return ActorCritic(make_policy(name, space, spaces.Discrete(2), 1e-3, kwargs)).preprocessing


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_the_same_numbers_as_stable_baselines3(name, normalize):
    space = SPACES[name]
    space.seed(0)
    drawn = [space.sample() for _ in range(7)]
    prepare = preprocessing(space, normalize)
    if isinstance(space, spaces.Dict):
        batch = {key: torch.as_tensor(np.stack([x[key] for x in drawn])) for key in space.spaces}
        ours, theirs = prepare(batch), preprocess_obs(batch, space, normalize)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        return
    batch = torch.as_tensor(np.stack(drawn))
    assert torch.equal(prepare(batch), preprocess_obs(batch, space, normalize))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_channels_of_a_pixel_lie_side_by_side(channels):
    """In strides too, which is what convolutions go by: with one channel every tensor would count as contiguous both ways."""
    batch = torch.randint(0, 256, (4, channels, 40, 40), dtype=torch.uint8)
    image = spaces.Box(0, 255, (channels, 40, 40), np.uint8)
    ours, own = (preprocessing(image, extractor=extractor)(batch) for extractor in (FlattenExtractor, Own))
    assert ours.shape == batch.shape
    assert ours.stride() == (1600 * channels, 1, 40 * channels, channels)
    assert batch.stride() == own.stride() == (1600 * channels, 1600, 40, 1)


@pytest.mark.parametrize("extractor", [FlattenExtractor, Own])
def test_beyond_the_cpu_images_are_contiguous(extractor):
    """However the environment's bytes lie; a device without numbers stands for a GPU."""
    batch = torch.zeros((4, 40, 40, 3), dtype=torch.uint8, device="meta").permute(0, 3, 1, 2)
    assert preprocessing(spaces.Box(0, 255, (3, 40, 40), np.uint8), extractor=extractor)(batch).is_contiguous()
