"""What several actors have in common."""
