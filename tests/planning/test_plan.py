import dataclasses

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.parallel.mesh import MeshConfig
from t5jax.planning.cost_model import OutOfMemory
from t5jax.planning.plan import advice
from t5jax.planning.workload import Workload


def test_advice_names_three_changes_the_best_first():
    task = Workload(
        config=T5Config.preset("t5-v1_1-base"),
        policy=ComputePolicy(),
        mesh=MeshConfig(data=2, fsdp=4),
        batch_size=32,
        input_length=512,
        target_length=114,
    )
    error = OutOfMemory(20e9, 16e9, {"parameters": 10**9, "optimizer": 10**6})
    found = advice(task, error, count=8)
    saved = [amount for amount, _ in found]
    assert len(found) == 3
    assert saved == sorted(saved, reverse=True)
    assert found[0][1] == "--remat full"
    assert "--accumulate 2" in [change for _, change in found]

    error = OutOfMemory(50e9, 16e9, {"parameters": 10**9, "optimizer": 45 * 10**9})
    large, _, _ = advice(dataclasses.replace(task, optimizer="muon"), error, count=8)
    assert large[1] == "--optimizer adafactor"
    assert large not in advice(task, error, count=8)
