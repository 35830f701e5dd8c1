"""Owns XMP sidecars: captions as the description and the alt text of an image, for programs that manage photos.

Alt text and extended description are those of the IPTC Photo Metadata Standard 2021.1, which wants an alt text of 250
letters at most. What IPTC has for generated content (`DigitalSourceType`, since 2025.1 `AISystemUsed` and its like)
says how the image was made, and so does `xmp:CreatorTool`. They are not set: a photo is no less a photo for a generated
description. Who wrote the description has a field of its own, `photoshop:CaptionWriter` ("Description Writer"), and
`x:xmptk` says what wrote a file.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from batchcap.config import Existing
from batchcap.core.records import CaptionRow
from batchcap.inputs.columns import shown
from batchcap.outputs.form import FinishedPart
from batchcap.outputs.sidecars import Merged, Sidecar, Sidecars
from batchcap.outputs.texts import accessible, digest_of_text, joined
from batchcap.outputs.xmp_packet import Packet
from batchcap.outputs.xmp_reader import RDF, PacketError, Property

log = logging.getLogger(__name__)

_CORE = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
DESCRIPTION = Property("http://purl.org/dc/elements/1.1/", "dc", "description")
ALT_TEXT = Property(_CORE, "Iptc4xmpCore", "AltTextAccessibility")
EXTENDED = Property(_CORE, "Iptc4xmpCore", "ExtDescrAccessibility")
WRITER = Property("http://ns.adobe.com/photoshop/1.0/", "photoshop", "CaptionWriter", has_languages=False)
_TEXTS = (DESCRIPTION, ALT_TEXT, EXTENDED)
_OURS = (*_TEXTS, WRITER)
_EMPTY = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="batchcap">
 <rdf:RDF xmlns:rdf="{RDF}">
 </rdf:RDF>
</x:xmpmeta>
"""


class XmpFiles(Sidecars):
    """An XMP file for each image.

    Adobe's programs look for `a.xmp`, darktable and digiKam for `a.jpg.xmp`; either may be there already, with what
    those programs know of the image, and is extended then.
    """

    name = "xmp"
    suffix = ".xmp"
    is_shared = True

    def namings(self) -> tuple[bool, ...]:
        """Both, unless one is asked for."""
        return (True,) if self.config.full_names else (False, True)

    def paths(self, targets: Sequence[Path], suffix: str) -> list[Path]:
        """Those that are there: different programs may have one each. Else the usual one."""
        possible = [path.with_name(path.name + one) for path in targets for one in (suffix, suffix.upper())]
        found = dict[object, Path]()
        for path in possible:
            identity = self.files.identity(path)
            if identity is not None:
                found.setdefault(identity, path)  # .xmp and .XMP may be one file
        return list(found.values()) or possible[:1]

    def _suffixes(self) -> list[str]:
        return [self.suffix]

    def contents(
        self,
        part: FinishedPart,
        row: CaptionRow,  # noqa: ARG002
        answers: list[tuple[str, str]],
    ) -> Iterator[tuple[str, bytes, int]]:
        """One, as it is where nobody else has one."""
        found = accessible(answers, self.config.max_alt_letters)
        texts = {DESCRIPTION: found.extended, ALT_TEXT: found.alt, EXTENDED: found.extended, WRITER: _writer(part)}
        yield self.suffix, Packet(_EMPTY.encode(), _OURS).with_texts(texts), len(answers)

    def merged(self, before: bytes | None, sidecar: Sidecar, own: frozenset[str]) -> Merged:
        """The file with our texts where there are none of somebody else, or where `--existing` says so."""
        new = Packet(sidecar.content, _OURS)
        wanted = {one: new.text(one) for one in _OURS}
        if before is None:
            return Merged(sidecar.content, texts=_digests(wanted))
        if not own:
            self.refuse_if_asked(sidecar.path)
        try:
            old = Packet(before, _OURS)
        except PacketError as error:
            log.warning("%s is left as it is: %s", shown(sidecar.path), error)
            return Merged(None)
        chosen = {one: self._chosen(one, old, wanted[one], own) for one in _TEXTS}
        texts = {one: text for one, text in chosen.items() if text is not None}
        kept_texts = len(chosen) - len(texts)
        if not texts:
            return Merged(None, kept_texts)
        if texts.get(DESCRIPTION) == wanted[DESCRIPTION] and self._may_sign(old, wanted[WRITER], own):
            texts[WRITER] = wanted[WRITER]
        changed = {one: text for one, text in texts.items() if text != old.text(one)}
        ours = {one: text for one, text in texts.items() if text == wanted[one]}
        return Merged(old.with_texts(changed) if changed else before, kept_texts, _digests(ours))

    def _chosen(self, one: Property, old: Packet, wanted: str, own: frozenset[str]) -> str | None:
        """The text that a property is to have; None: that of somebody else stays."""
        there = old.text(one)
        if there == wanted:
            return wanted
        if not old.can_hold(one):
            return None
        policy = self.config.existing
        if not there.strip() or digest_of_text(one.key, there) in own or policy is Existing.REPLACE:
            return wanted
        if policy in (Existing.APPEND, Existing.PREPEND):
            return there if wanted in there else joined(there, wanted, policy)
        return None

    def _may_sign(self, old: Packet, wanted: str, own: frozenset[str]) -> bool:
        """Whether the description, which is ours alone, may be marked as such."""
        there = old.text(WRITER)
        is_free = not there.strip() or there == wanted or digest_of_text(WRITER.key, there) in own
        return old.can_hold(WRITER) and (is_free or self.config.existing is Existing.REPLACE)


def _digests(texts: dict[Property, str]) -> frozenset[str]:
    return frozenset(digest_of_text(one.key, text) for one, text in texts.items())


def _writer(part: FinishedPart) -> str:
    """Program and model that wrote the captions of a part."""
    bundle = json.loads(part.metadata.get("batchcap.bundle", "{}"))
    model = PurePath(str(bundle.get("source", ""))).name  # may be a path of another machine
    known = ("batchcap", part.metadata.get("batchcap.version", ""), model, str(bundle.get("precision", "")))
    return " ".join(filter(None, known))
