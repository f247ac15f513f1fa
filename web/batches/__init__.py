"""OpenAI's files and batches: what is kept on the disk and in the ledger, and the work that is done from it.

A file or an answer exists once the ledger says so. The ledger (SQLite, one thread) is written after the bytes it speaks
of are on the disk, so what a crash leaves behind is never more than bytes that nobody was promised; they are removed
or cut off when the folder is opened again.
"""
