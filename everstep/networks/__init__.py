"""Networks shared by several jobs, and the layers of a recipe's `model` section."""
