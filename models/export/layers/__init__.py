"""Which Keras layers can be exported, and what replaces those TFLite cannot run."""
