"""The story: one module for each stage, and the pipeline that chains them."""
