"""Export of trained models as files for other runtimes."""
