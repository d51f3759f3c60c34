"""Files that outlive a crash: written whole or not at all, locked, and read with care."""
