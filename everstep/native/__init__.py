"""Infrastructure of compiled code: compiler, build cache, threads, memory, matrix products."""
