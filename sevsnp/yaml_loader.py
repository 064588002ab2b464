"""How YAML files are read: the safe loader, of the C library where PyYAML was built with it (ten times as fast)."""

from typing import Any


def safe_loader() -> Any:
    """A class for yaml.load and yaml.compose; doit reads several lists for every command."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
