"""Fine-tuning, distillation, transfer."""
