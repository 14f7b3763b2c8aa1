"""The two loops: pretraining and fine-tuning."""
