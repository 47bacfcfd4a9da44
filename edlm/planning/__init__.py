"""Planning: which steps to take, and how much computation to spend on each."""
