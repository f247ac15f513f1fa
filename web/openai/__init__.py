"""What OpenAI's routes share.

``tools`` functions that the model may call; ``calls`` finds the calls in its text; ``turns`` calls and results as turns
of a conversation; ``reply`` one choice of a chat answer; ``refusals`` which fields are refused and why; ``completions``
the old completions; ``responses_body``, ``responses_items``, ``responses_answer``, ``responses_stream`` and
``responses_store`` the Responses API.
"""
