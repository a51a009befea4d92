"""Policy optimisation of causal language models: REBEL and baselines that share its samples.

Needs `pip install rlopt[lm]`. `REBELTrainer` is built like TRL's trainers; one iteration samples, scores and regresses.

Source: Gao et al., arXiv:2404.16767.
"""

try:
    import peft  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(f"rlopt.lm needs {error.name or 'transformers and peft'}: pip install 'rlopt[lm]'") from error

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.rewards import RewardModel
from rlopt.lm.trainer import REBELTrainer

__all__ = ["REBELConfig", "REBELTrainer", "RewardModel"]
