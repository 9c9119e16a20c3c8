"""``python -m segfuse`` prints what is installed and what it runs on. Put it into bug reports."""

from segfuse import build_info

for key, value in build_info().items():
    print(f"{key:28} {', '.join(value) if isinstance(value, list) else value}")
