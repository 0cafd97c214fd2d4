"""Local brokers: Mosquitto, or the embedded broker."""
