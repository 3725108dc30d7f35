"""What happens to reward, KL and output length when the same small model is aligned by PPO, DPO or GRPO?"""

import os

# Before huggingface_hub and datasets are imported, which is when they read them: nothing is sent that nobody asked for
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")

__version__ = "0.1.0"
