"""How tests compile: they compile much and compute little."""

import importlib.metadata

# for CPU: no optimisation halves the time that compilation takes; where two workers share two
# cores, threads for products only wait for one another (a tenth)
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
major, minor, *_ = importlib.metadata.version("jaxlib").split(".")
if (int(major), int(minor)) < (0, 11):  # XLA ends a process that names a flag it no longer has
    # without fusion emitters an update takes a third of what is left (4.4 s → 1.4 s)
    QUICK += " --xla_cpu_use_fusion_emitters=false"
