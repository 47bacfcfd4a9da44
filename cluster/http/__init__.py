"""The endpoint over HTTP: requests in, jobs for the engine, answers out; it knows neither Ray nor MLflow."""
