"""Captions for a folder of pictures: found, captioned, written down as they come, resumed after any end.

::

    async with AsyncClient() as client:
        with open_jsonl(Path("captions.jsonl")) as ledger:
            report = await caption_folder(Path("photos"), client, ledger, prompt="Describe this picture.")

``files`` finds pictures, ``prompts`` says what each is asked, ``ledger`` (with ``formats``) and ``sidecar`` keep
captions, ``modes`` opens them to continue, replace or append, ``run`` does the work. None imports torch.
"""

from __future__ import annotations

from mmserve.caption.files import PICTURE_SUFFIXES, UNREAD_SUFFIXES, Pictures, find_pictures, select_pictures
from mmserve.caption.formats import open_csv, open_jsonl
from mmserve.caption.ledger import Caption, Ledger, LineLedger
from mmserve.caption.modes import Mode, open_lines, open_sidecars, recorded_lines, recorded_sidecars
from mmserve.caption.progress import Progress
from mmserve.caption.prompts import Finish, PicturePrompts
from mmserve.caption.run import (
    Captioner,
    ClientCaptioner,
    Failure,
    Report,
    caption_folder,
    caption_pictures,
    plan_captions,
)
from mmserve.caption.sidecar import SidecarLedger

__all__ = [
    "PICTURE_SUFFIXES",
    "UNREAD_SUFFIXES",
    "Caption",
    "Captioner",
    "ClientCaptioner",
    "Failure",
    "Finish",
    "Ledger",
    "LineLedger",
    "Mode",
    "PicturePrompts",
    "Pictures",
    "Progress",
    "Report",
    "SidecarLedger",
    "caption_folder",
    "caption_pictures",
    "find_pictures",
    "open_csv",
    "open_jsonl",
    "open_lines",
    "open_sidecars",
    "plan_captions",
    "recorded_lines",
    "recorded_sidecars",
    "select_pictures",
]
