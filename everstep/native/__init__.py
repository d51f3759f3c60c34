"""What compiled code of any kind needs: compiler, build cache, threads, memory and products of matrices."""
