"""The language: programs in plain Python that write a conversation and let a model fill it in.

::

    import mmserve as sgl

    @sgl.function
    def ask(s, picture, question):
        s += sgl.user(sgl.image(picture) + question)
        s += sgl.assistant(sgl.gen("answer"))

    sgl.set_default_backend(sgl.Engine(model_path="pocket-vl"))
    print(ask.run("cat.jpg", "What is this?")["answer"])

``expressions`` and ``api`` are what a program is written with; a ``transcript`` takes them up, ``execution`` computes
what they ask for, each generation as soon as the pieces of its prompt (``slots``) are there; ``local`` and ``endpoint``
are the backends. The public names are those of ``mmserve`` itself. The guide is docs/language.md.
"""
