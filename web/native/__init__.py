"""SGLang's native ``/generate``: ``body`` what may be said, ``pictures`` its pictures, ``items`` a body -> engine
requests, ``flights`` what is under way and may be aborted by name, ``answers`` events -> SGLang's JSON.
"""
