"""A whole study in this process, without Ray: for notebooks and debuggers. Run: python examples/one_process.py"""

import prunefront as pf

STUDY = {
    "name": "one-process",
    # or "my_package:make_network", with "weights": "trained.safetensors"
    "model": {"factory": "digits_cnn", "options": {"width": 16}},
    "data": {"source": "digits"},
    "dense": {"epochs": 6},
    "search": {"candidates": 16},
    "training": {"candidates": 4, "epochs": 2, "learning_rate": 0.05},
}

front = pf.search(STUDY, without_ray=True, fresh=True, quiet=True)
for row in front:
    print(f"{row.accuracy:.3f} {row.latency_ratio:5.2f} x dense {row.macs / 1e6:6.2f} M MACs  {row.key}")
best = front.best(under={"latency_ratio": 1.0})
print(f"most accurate of those at most as slow as the dense network: {best.key}, in {best.artifact}")
