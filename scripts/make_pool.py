"""Sample the annotator's pool from SmolLM2-135M and put it where the package ships it (align/assets).

Needed again only when the prompts, the pool's settings or the embedded weights change. About five minutes on two cores.
`python scripts/make_pool.py`
"""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from align.config import check
from align.data.annotator import build
from align.device import resolve_device, resolve_dtype
from align.models import load_policy
from align.run import CONF
from align.stages import SHIPPED, obtain_pool, stages_root


def main() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        experiment = check(compose("run"))
    device = resolve_device(experiment.device)
    policy = load_policy(experiment.model, device, resolve_dtype(experiment.dtype, device), experiment.seed)
    pool = obtain_pool(experiment.data, experiment, policy)
    for note in build(experiment.data, pool).notes:
        print(note)
    name = f"pool-{pool.header.key[:12]}.jsonl.gz"
    SHIPPED.mkdir(exist_ok=True)
    for old in SHIPPED.glob("pool-*.jsonl.gz"):
        old.unlink()
    (stages_root(experiment) / name).replace(SHIPPED / name)
    print(SHIPPED / name)


if __name__ == "__main__":
    main()
