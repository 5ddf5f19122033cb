"""How fast a kernel is: blocks, rounds, statistics, roofline."""
