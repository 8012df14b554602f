"""Read and write a caption in XMP, as dc:description and IPTC's AltTextAccessibility. Other properties are kept."""

from __future__ import annotations

import re
from io import BytesIO
from xml.etree import ElementTree

from captioner.bulk.outputs.boilerplate import own_words
from captioner.errors import OutputRefused

META, DC = "adobe:ns:meta/", "http://purl.org/dc/elements/1.1/"
IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
RDF, XML = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://www.w3.org/XML/1998/namespace"
_EMPTY = f'<x:xmpmeta xmlns:x="{META}"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about=""/></rdf:RDF></x:xmpmeta>'
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML cannot hold
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_LANGUAGE = f"{{{XML}}}lang"
_PROPERTIES, _TEXTS = (f"{{{DC}}}description", f"{{{IPTC}}}AltTextAccessibility"), f"{{{RDF}}}li"


def description(packet: bytes) -> str | None:
    """Return the description, or else the alternative text, preferably in the default language; None without words."""
    owners = _owners(_parse(packet))
    for name in _PROPERTIES:
        for owner in owners:
            texts = list(owner.iterfind(f"{name}//{_TEXTS}"))
            texts.sort(key=lambda text: text.get(_LANGUAGE) != "x-default")
            # Some programs write a plain text, as an element or as an attribute.
            for text in (*(each.text for each in texts), owner.findtext(name), owner.get(name)):
                if words := own_words(text):
                    return words
    return None


def with_description(packet: bytes | None, text: str) -> bytes:
    """Return the packet, or a new one for None, with `text` as both properties in the default language.

    Raises OutputRefused if the packet is not XMP.
    """
    root = _parse(_EMPTY.encode() if packet is None else packet)
    owners = _owners(root)
    if not owners:
        raise OutputRefused("the sidecar has no rdf:Description; it was left unchanged")
    for name in _PROPERTIES:
        _set(owners, name, _NOT_XML.sub("", text))
    try:
        return f'{_BEGIN}{ElementTree.tostring(root, "unicode")}\n<?xpacket end="w"?>\n'.encode()
    except RecursionError:
        raise OutputRefused("the sidecar is nested too deeply; it was left unchanged") from None


def _set(owners: list[ElementTree.Element], name: str, text: str) -> None:
    """Set the default language of a property. Its other languages are kept."""
    alternatives = next((each for owner in owners for each in owner.iterfind(f"{name}/{{{RDF}}}Alt")), None)
    for owner in owners:
        owner.attrib.pop(name, None)
        for other in owner.findall(name):
            if alternatives is None or alternatives not in list(other):  # of another structure, or a second one
                owner.remove(other)
    if alternatives is None:
        alternatives = ElementTree.SubElement(ElementTree.SubElement(owners[0], name), f"{{{RDF}}}Alt")
    item = next((each for each in alternatives if each.get(_LANGUAGE) == "x-default"), None)
    if item is None:
        item = ElementTree.Element(_TEXTS, {_LANGUAGE: "x-default"})
        alternatives.insert(0, item)
    item.text = text


def _parse(packet: bytes) -> ElementTree.Element:
    for prefix, uri in (("x", META), ("rdf", RDF), ("dc", DC), ("Iptc4xmpCore", IPTC)):
        ElementTree.register_namespace(prefix, uri)
    try:
        for _, (prefix, uri) in ElementTree.iterparse(BytesIO(packet), ["start-ns"]):
            if prefix and not re.fullmatch(r"ns\d+", prefix):
                ElementTree.register_namespace(prefix, uri)
        return ElementTree.fromstring(packet)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: an unknown encoding
        raise OutputRefused(f"the sidecar is not XML ({error}); it was left unchanged") from None


def _owners(root: ElementTree.Element) -> list[ElementTree.Element]:
    return list(root.iter(f"{{{RDF}}}Description"))
