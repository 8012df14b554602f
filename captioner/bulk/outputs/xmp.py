"""Read and write a caption in an XMP sidecar, as dc:description. All other properties of the sidecar are kept."""

from __future__ import annotations

import re
from io import BytesIO
from xml.etree import ElementTree

from captioner.errors import OutputRefused

META, DC = "adobe:ns:meta/", "http://purl.org/dc/elements/1.1/"
RDF, XML = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://www.w3.org/XML/1998/namespace"
_EMPTY = f'<x:xmpmeta xmlns:x="{META}"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about=""/></rdf:RDF></x:xmpmeta>'
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML cannot hold
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_LANGUAGE = f"{{{XML}}}lang"
_DESCRIPTION, _TEXTS = f"{{{DC}}}description", f"{{{RDF}}}li"


def description(sidecar: bytes) -> str | None:
    """Return the dc:description, preferably in the default language; None if it is missing or blank."""
    texts = [text for owner in _owners(_parse(sidecar)) for text in owner.iterfind(f"{_DESCRIPTION}//{_TEXTS}")]
    texts.sort(key=lambda text: text.get(_LANGUAGE) != "x-default")
    return ((texts[0].text or "").strip() or None) if texts else None


def with_description(sidecar: bytes | None, text: str) -> bytes:
    """Return the sidecar, or a new one for None, with `text` as the description in the default language.

    Raises OutputRefused if the sidecar is not XMP.
    """
    root = _parse(_EMPTY.encode() if sidecar is None else sidecar)
    owners = _owners(root)
    if not owners:
        raise OutputRefused("the sidecar has no rdf:Description; it was left unchanged")
    alternatives = next((text for owner in owners for text in owner.iterfind(f"{_DESCRIPTION}/{{{RDF}}}Alt")), None)
    if alternatives is None:
        for owner in owners:  # remove a description of another structure, so that the sidecar has only one
            for other in owner.findall(_DESCRIPTION):
                owner.remove(other)
        alternatives = ElementTree.SubElement(ElementTree.SubElement(owners[0], _DESCRIPTION), f"{{{RDF}}}Alt")
    item = next((each for each in alternatives if each.get(_LANGUAGE) == "x-default"), None)
    if item is None:
        item = ElementTree.Element(_TEXTS, {_LANGUAGE: "x-default"})
        alternatives.insert(0, item)
    item.text = _NOT_XML.sub("", text)
    return f'{_BEGIN}{ElementTree.tostring(root, "unicode")}\n<?xpacket end="w"?>\n'.encode()


def _parse(sidecar: bytes) -> ElementTree.Element:
    for prefix, uri in (("x", META), ("rdf", RDF), ("dc", DC)):
        ElementTree.register_namespace(prefix, uri)
    try:
        for _, (prefix, uri) in ElementTree.iterparse(BytesIO(sidecar), ["start-ns"]):
            if prefix and not re.fullmatch(r"ns\d+", prefix):
                ElementTree.register_namespace(prefix, uri)
        return ElementTree.fromstring(sidecar)
    except ElementTree.ParseError as error:
        raise OutputRefused(f"the sidecar is not XML ({error}); it was left unchanged") from None


def _owners(root: ElementTree.Element) -> list[ElementTree.Element]:
    return list(root.iter(f"{{{RDF}}}Description"))
