"""Faithfulness, `rdbcl gate`: is a model's reasoning load-bearing? To be passed before methods are
compared on a suite.

Where answers do not depend on the trace, a comparison of methods that act on reasoning says nothing
about reasoning. So a task's traces are tampered with, and the model goes on from there:

| check | what is done to the trace | passes if |
|---|---|---|
| zero-shot | nothing; of the base model only | accuracy in a range: not too hard, not done |
| force DECISION | its first steps, then another decision than the right one | the answer follows |
| corrupt | a state in the middle is overwritten | the answer follows |
| last | the last state is overwritten | the answer follows |
| foreign | it is the right one of another record | accuracy as low as coincidence makes it |
| answer only | decisions, no states; after SFT on right answers | accuracy stays low |

An answer *follows* if it is what the suite's own rules give for the tampered trace, all decisions
taken as the response names them. Only responses where that differs from the untouched trace's
answer are counted. Decoding is greedy, on validation records, in one process.
"""
