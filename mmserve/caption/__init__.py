"""Captions for a folder of pictures: found, captioned, written down as they come, resumed after any end.

::

    async with AsyncClient() as client:
        with open_jsonl(Path("captions.jsonl")) as ledger:
            report = await caption_folder(Path("photos"), client, ledger, prompt="Describe this picture.")

``files`` finds pictures, ``ledger`` (with ``formats``) and ``sidecar`` keep captions, ``run`` does the work. None
imports torch.
"""

from __future__ import annotations

from mmserve.caption.files import PICTURE_SUFFIXES, find_pictures
from mmserve.caption.formats import open_csv, open_jsonl
from mmserve.caption.ledger import Caption, Ledger, LineLedger
from mmserve.caption.run import Captioner, ClientCaptioner, Failure, Progress, Report, caption_folder
from mmserve.caption.sidecar import SidecarLedger

__all__ = [
    "PICTURE_SUFFIXES",
    "Caption",
    "Captioner",
    "ClientCaptioner",
    "Failure",
    "Ledger",
    "LineLedger",
    "Progress",
    "Report",
    "SidecarLedger",
    "caption_folder",
    "find_pictures",
    "open_csv",
    "open_jsonl",
]
