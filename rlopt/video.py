"""An episode as pictures: an MP4 file, or an animation for TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from rlopt.agents.base import Agent
from rlopt.device import threads_for
from rlopt.envs.base import Environments
from rlopt.envs.facade import as_vec_env
from rlopt.envs.spaces import Array
from rlopt.evaluation import check_spaces


def record_episode(
    agent: Agent, envs: Environments, deterministic: bool = True, seed: int | None = None, max_frames: int = 10_000
) -> list[Array]:
    """Frames [height, width, 3] of one episode in the first of the environments, at most `max_frames`.

    Raises:
        ValueError: the environments' spaces are not the agent's, or they give no pictures.
    """
    check_spaces(agent, envs)
    vec_env = as_vec_env(envs)
    if seed is not None:
        vec_env.seed(seed)
    observations: Any = vec_env.reset()
    frames = [_frame(vec_env, envs.name)]
    state, starts = None, np.ones(envs.num_envs, bool)
    with threads_for(agent.state.theta):
        while len(frames) < max_frames:
            actions, state = agent.predict(observations, state, starts, deterministic)
            observations, _, starts, infos = vec_env.step(actions)
            if starts[0] and "episode" in infos[0]:  # an Atari life is not an episode
                break
            frames.append(_frame(vec_env, envs.name))
    return frames


def frames_per_second(envs: Environments) -> int:
    """What the first environment's metadata say, 30 if nothing."""
    try:
        return int(envs.get_attr("metadata", [0])[0].get("render_fps", 30))
    except (AttributeError, NotImplementedError):
        return 30


def check_mp4(path: Path) -> None:
    """Find out whether `write_mp4` can write there.

    Raises:
        ValueError: the name does not end in .mp4.
        ImportError: moviepy is not installed; the message says what to install.
    """
    if path.suffix != ".mp4":
        raise ValueError(f"video: expected a name that ends in .mp4, got {str(path)!r}")
    try:
        import moviepy  # noqa: F401
    except ImportError as error:
        raise ImportError("video: writing MP4 needs moviepy, which is not installed: pip install 'rlopt[video]'") from error


def write_mp4(frames: list[Array], path: Path, fps: int) -> None:
    """Frames as an MP4 file; raises what `check_mp4` does."""
    check_mp4(path)
    import moviepy

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])  # H.264 wants even numbers
    clip = moviepy.ImageSequenceClip([frame[:height, :width] for frame in frames], fps=fps)
    clip.write_videofile(str(path), codec="libx264", audio=False, logger=None)
    clip.close()


def gif_bytes(frames: list[Array], fps: int, max_frames: int = 150, max_side: int = 240) -> tuple[bytes, tuple[int, int]]:
    """Frames as an animated GIF and its (height, width), frames left out and pictures made smaller to fit the limits."""
    from PIL import Image

    every = -(-len(frames) // max_frames)
    smaller = -(-max(frames[0].shape[:2]) // max_side)
    pictures = [Image.fromarray(frame).reduce(smaller) for frame in frames[::every]]
    target = io.BytesIO()
    milliseconds = max(round(1000 * every / fps), 20)  # browsers slow down what is faster
    pictures[0].save(target, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return target.getvalue(), pictures[0].size[::-1]


def _frame(vec_env: VecEnv, name: str) -> Array:
    try:
        image = vec_env.get_images()[0]
    except Exception as error:  # OpenGL, pygame and MuJoCo each raise their own
        hint = "; without a display, set MUJOCO_GL=egl or MUJOCO_GL=osmesa for MuJoCo"
        raise ValueError(f"video: {name} cannot be drawn here: {error}{hint}") from error
    if image is None:
        raise ValueError(f"video: {name} gives no pictures (render_mode='rgb_array')")
    return np.asarray(image, np.uint8)
