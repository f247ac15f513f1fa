"""Questions answered with a probability for every allowed answer, without writing text.

``questions`` request bodies -> questions; ``scoring`` questions -> engine requests -> probabilities; ``answers`` those
-> JSON. Two clients' shapes are served: SGLang's, and OpenAI's Decisions API.
"""
