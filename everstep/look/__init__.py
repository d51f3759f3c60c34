"""Pictures of trained models. Nothing here opens a window; matplotlib is imported only by the modules that draw."""
