"""Linear read-outs, in closed form or step by step, and echo state networks."""
