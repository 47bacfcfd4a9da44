"""Export of registered models: a Hugging Face repository folder that needs neither this project nor its packages."""
