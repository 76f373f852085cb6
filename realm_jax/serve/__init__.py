"""The page and the API to ask a fine-tuned run. Needs the extra `serve`; only `server` can be imported without it."""
