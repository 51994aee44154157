"""The `llava_med_conversation` task: LLaVA-Med's biomedical conversations, judged by a language model."""
