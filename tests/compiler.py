"""How tests compile: they compile much and compute little."""

# for CPU: no optimisation halves the time that compilation takes; without fusion emitters an update
# takes a third of what is left (4.4 s → 1.4 s); where two workers share two cores, threads for
# products only wait for one another (a tenth)
QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_multi_thread_eigen=false"
)
