"""Published checkpoints: the networks of MDLM, EDLM and their like, and the layout of their weights."""
