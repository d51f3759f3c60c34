"""Networks that several jobs share, and how a recipe's `model` section becomes layers."""
