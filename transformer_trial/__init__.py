"""BaseTransformerTrial and what it is built of: the task-agnostic half of this example."""
