"""Training: the parts that the training stages share."""
