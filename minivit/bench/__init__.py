"""Is this attention kernel right? A file with `attention(q, k, v)` is run through a plan of checks, in a process
of its own, and every answer is held against float64.

Reading order: specs (what is asked), inputs (the tensors), rule (how far from right is too far), checks and conduct
(the questions), mutants (wrong kernels the questions must catch), kernels (where kernels come from), isolate
(the process), report (what is told).
"""
