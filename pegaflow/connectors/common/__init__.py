"""What a connector decides, whatever the engine. Pure."""
