"""Every row paired with one of the other side, or found to have none; what the walk left over is joined."""
