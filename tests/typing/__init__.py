"""Uses of the public interface that mypy checks; nothing here is run."""
