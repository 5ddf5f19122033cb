"""Is this attention kernel right, how fast is it, how far from the limit, and what does it do to the model?

A file with `attention(q, k, v)` is run through a plan of checks, in a process of its own, and every answer is held
against float64; then it takes turns with others in processes that do nothing else.

Reading order. Right: specs (what is asked), inputs (the tensors), rule (how far from right is too far), checks and
conduct (the questions), mutants (wrong kernels the questions must catch), kernels (where kernels come from), isolate
(the process), report (what is told). Fast: machine (what the system tells), worker and timing (a block of calls),
roofline (the limits), run (who takes turns), stats and summary (from blocks to rows), model (inside a ViT), results,
tables and html (what is told), compare (two runs).
"""
