"""``python -m segfuse``: what is installed and what it runs on, for bug reports."""

from segfuse import build_info

for key, value in build_info().items():
    print(f"{key:28} {', '.join(value) if isinstance(value, list) else value}")
