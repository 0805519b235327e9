"""What runs an actor: the contract, the host around it, and the process that both live in."""
