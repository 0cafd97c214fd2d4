"""Link: one MQTT connection over paho."""
