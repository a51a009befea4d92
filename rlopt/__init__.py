"""rlopt: policy-optimisation agents that share one rollout type, one collector and one set of estimators."""

from rlopt.agents import (
    ALGORITHMS,
    HARPG,
    MOPG,
    MOTSIVRPG,
    NPGIGT,
    NVRPG,
    PPO,
    REBEL,
    REINFORCE,
    S2PG,
    SRVRPG,
    STORMPG,
    Agent,
    RecurrentPPO,
)
from rlopt.checkpoints import Checkpoints
from rlopt.envs.base import EnvironmentFault
from rlopt.envs.facade import as_vec_env
from rlopt.envs.vector import make_envs
from rlopt.evaluation import evaluate
from rlopt.flight_recorder import FlightRecorder
from rlopt.rollout import Rollout
from rlopt.sb3 import export_sb3, import_sb3
from rlopt.schedules import Constant, Linear, Power
from rlopt.together import learn_together
from rlopt.verification import verify
from rlopt.version import __version__

__all__ = [
    "ALGORITHMS",
    "HARPG",
    "MOPG",
    "MOTSIVRPG",
    "NPGIGT",
    "NVRPG",
    "PPO",
    "REBEL",
    "REINFORCE",
    "S2PG",
    "SRVRPG",
    "STORMPG",
    "Agent",
    "Checkpoints",
    "Constant",
    "EnvironmentFault",
    "FlightRecorder",
    "Linear",
    "Power",
    "RecurrentPPO",
    "Rollout",
    "__version__",
    "as_vec_env",
    "evaluate",
    "export_sb3",
    "import_sb3",
    "learn_together",
    "make_envs",
    "verify",
]
