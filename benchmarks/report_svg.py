"""SVG files made part of an HTML page: no reference leaves it, no name meets another figure's, nothing in it runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup, escape

from benchmarks.errors import UserError

# What matplotlib draws with. Anything else (scripts, foreign objects, links, style sheets) is dropped with its content.
ELEMENTS = ("svg", "g", "defs", "path", "use", "clipPath", "rect", "circle", "ellipse", "line", "polyline", "polygon")
TEXTS = ("text", "tspan")
# Of matplotlib's style sheet, which would reach the page; the family it repeats for every text.
INHERITED = "stroke-linejoin: round; stroke-linecap: butt; font-family: DejaVu Sans, Verdana, sans-serif"
_LOCAL = re.compile(r"url\(\s*#([^)\s]+)\s*\)")
_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_OWN_OPACITY = re.compile(r"(?<![\w-])opacity")  # of an element as a whole, which its children do not inherit


def inline(path: Path, *, prefix: str, label: str) -> Markup:
    """The figure in a file as an `svg` element.

    Args:
        prefix: of its names, unique on the page. label: what the figure shows, for people who do not see it.
    Raises:
        UserError: the file is no SVG.
    """
    advice = "rerun the command that draws it, or remove the file"
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not readable as SVG ({error}); {advice}") from error
    if _name(root.tag) != "svg":
        raise UserError(f"{path} holds <{_name(root.tag)}>, not an SVG figure; {advice}")
    used = [name for element in root.iter() for value in element.attrib.values() for name in _names_in(value)]
    names = {name: f"{prefix}{place}" for place, name in enumerate(dict.fromkeys(used))}  # matplotlib's are long
    inside = "".join(_drawn(child, names) for child in root)
    box = escape(root.get("viewBox", "0 0 100 100"))
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}" style="{INHERITED}">{inside}</svg>')


def _names_in(value: str) -> list[str]:
    """Names of elements that an attribute refers to."""
    return [value[1:]] if value.startswith("#") else _LOCAL.findall(value)


def _drawn(element: ElementTree.Element, names: Mapping[str, str], said: frozenset[str] = frozenset()) -> str:
    """An element and what it holds, as HTML.

    Args:
        names: of what something refers to, as they are on the page. said: attributes that the parent has in its place.
    """
    name = _name(element.tag)
    if name not in (*ELEMENTS, *TEXTS) or (name == "path" and not element.get("d")):  # a path of nothing is not HTML
        return ""
    shared = _shared(element)
    items = [(key, value) for key, value in element.items() if key not in said] + list(shared.items())
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in _attributes(items, names))
    text = str(escape(element.text)) if element.text and name in TEXTS else ""
    children = (
        _drawn(child, names, frozenset(shared)) + (str(escape(child.tail)) if child.tail and name in TEXTS else "")
        for child in element
    )
    inside = text + "".join(children)
    return f"<{name}{attributes}>{inside}</{name}>" if inside else f"<{name}{attributes}/>"


def _shared(element: ElementTree.Element) -> dict[str, str]:
    """What all children of a group say alike and inherit from it: hundreds of error bars have one style."""
    children = list(element)
    if _name(element.tag) != "g" or len(children) < 2 or any("transform" in child.attrib for child in children):
        return {}
    found = {}
    for key in ("style", "clip-path"):
        values = {child.get(key) for child in children}
        value = values.pop()
        if value and not values and key not in element.attrib and not _OWN_OPACITY.search(value):
            found[key] = value
    return found


def _attributes(items: Iterable[tuple[str, str]], names: Mapping[str, str]) -> list[tuple[str, str]]:
    found = []
    for full, value in items:
        key = _name(full)
        if key.lower().startswith("on") or (key == "href" and not value.startswith("#")):
            continue
        if key == "id":
            if value not in names:
                continue
            value = names[value]
        elif key == "href":
            value = f"#{names[value[1:]]}"
        elif "url(" in value:
            if value.count("url(") != len(_LOCAL.findall(value)):
                continue
            value = _LOCAL.sub(lambda match: f"url(#{names[match[1]]})", value)
        elif key in ("d", "points", "x", "y", "transform"):
            value = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}", " ".join(value.split()))
        elif key == "style" and not (value := _FAMILY.sub("", value).strip()):
            continue
        found.append((key, value))
    return found


def _name(tag: object) -> str:
    """A tag or attribute without its namespace; "" for what is no element."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""
