"""Agents: one method per file, one shell for all."""

from rlopt.agents.base import Agent
from rlopt.agents.episodic import EpisodicAgent
from rlopt.agents.harpg import HARPG
from rlopt.agents.mopg import MOPG
from rlopt.agents.motsivrpg import MOTSIVRPG
from rlopt.agents.npgigt import NPGIGT
from rlopt.agents.nvrpg import NVRPG
from rlopt.agents.ppo import PPO
from rlopt.agents.rebel import REBEL
from rlopt.agents.recurrent_ppo import RecurrentPPO
from rlopt.agents.reinforce import REINFORCE
from rlopt.agents.s2pg import S2PG
from rlopt.agents.srvrpg import SRVRPG
from rlopt.agents.stormpg import STORMPG

# The names of the command line. A name with a prefix is a class with other defaults, which `presets.BASE` has.
ALGORITHMS: dict[str, type[Agent]] = {
    "ppo": PPO,
    "reinforce": REINFORCE,
    "npgigt": NPGIGT,
    "harpg": HARPG,
    "n-harpg": HARPG,
    "stormpg": STORMPG,
    "srvrpg": SRVRPG,
    "nvrpg": NVRPG,
    "mopg": MOPG,
    "mo-tsivr-pg": MOTSIVRPG,
    "s2pg": S2PG,
    "recurrentppo": RecurrentPPO,
    "rebel": REBEL,
}

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
    "EpisodicAgent",
    "RecurrentPPO",
]
