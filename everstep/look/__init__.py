"""Pictures of what a model learned. Nothing here opens a window; matplotlib is imported by the modules that draw."""
