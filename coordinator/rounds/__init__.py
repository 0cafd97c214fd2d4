"""One round: who was asked, who answered, when that is enough."""
