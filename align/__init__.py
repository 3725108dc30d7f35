"""What happens to reward, KL and output length when the same small model is aligned by PPO, DPO or GRPO?"""

__version__ = "0.1.0"
