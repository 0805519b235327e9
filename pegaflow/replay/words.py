"""Words of the lines that a replay prints."""


def count(number: int, what: str) -> str:
    """So many of something."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def was(number: int) -> str:
    """What so many of something were."""
    return "was" if number == 1 else "were"
