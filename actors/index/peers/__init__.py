"""What the index has to do with other hosts: what they have, and what they hear of us."""
