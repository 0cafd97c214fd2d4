"""Link: one MQTT connection, over paho, with the failures brokers have."""
