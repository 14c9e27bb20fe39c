"""Named-entity recognition without models: what a sentence passes through before and after one."""
