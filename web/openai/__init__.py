"""What OpenAI's routes share.

``tools`` functions that the model may call; ``calls`` finds the calls in its text; ``turns`` calls and results as turns
of a conversation; ``reply`` one choice of a chat answer; ``refusals`` which fields are refused and why; ``completions``
and ``old_logprobs`` the old completions. The Responses API: ``responses_body``, ``responses_items`` its input as turns,
``responses_run`` one answer on its way, ``responses_output`` the items of it, ``responses_store`` what is kept.
"""
