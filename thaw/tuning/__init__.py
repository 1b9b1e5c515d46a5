"""Changes the model: head, freezing, rates, and the loop that runs a plan."""
