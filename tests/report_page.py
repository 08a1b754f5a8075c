"""A report taken apart, and a small results folder to make one from."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib

from benchmarks.runs import RunConfig, RunStore, make_record

COLUMNS = (
    "model,method,of,title,account,padding,task,split,metric,measured,spread,seeds,speedup,speedup_mean_of_ratios,"
    "unpadding_alone,keep_ratio,records,reported,reported_speedup,difference,speedup_difference,reported_convention,"
    "reported_flag"
)


class Page:
    """An HTML page, by what a reader sees in it."""

    def __init__(self, text: str) -> None:
        self.root = html5lib.parse(text, namespaceHTMLElements=False)
        self.all_ids = self.attributes("id")
        self.ids = set(self.all_ids)
        self.tags = {element.tag for element in self.root.iter() if isinstance(element.tag, str)}
        self.text = "".join(self.root.find("body").itertext())
        self.links = self.attributes("href")
        self.files = [table.get("data-file") for table in self.root.iter("table") if table.get("data-file")]
        self.sections = [section.get("id") for section in self.root.iter("section") if section.get("id")]
        self.contents = [link.get("href")[1:] for link in self.root.find(".//nav").iter("a")]
        self.script = "".join("".join(script.itertext()) for script in self.root.iter("script"))
        self.style = "".join("".join(style.itertext()) for style in self.root.iter("style"))
        self.policy = self.root.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")

    def attributes(self, name: str) -> list[str]:
        return [value for element in self.root.iter() if (value := element.get(name)) is not None]

    def _rows(self, file: str) -> list[list[Element]]:
        (table,) = [table for table in self.root.iter("table") if table.get("data-file") == file]
        return [[cell for cell in row if cell.tag in ("th", "td")] for row in table.iter("tr")]

    def table(self, file: str) -> list[list[str]]:
        """Header and rows of the table made from a file: the exact values where the page rounds them."""
        return [[exact(cell) for cell in row] for row in self._rows(file)]

    def linked_cells(self, file: str) -> list[tuple[list[str], str]]:
        """(links, first exact value) of the linked cells of a file's table."""
        cells = [cell for row in self._rows(file) for cell in row if next(cell.iter("a"), None) is not None]
        return [([link.get("href") for link in cell.iter("a")], exact(cell).split()[0]) for cell in cells]

    def record(self, anchor: str) -> dict[str, str]:
        """What the entry of a record says, a long value by the entry to which its link leads."""
        (entry,) = [element for element in self.root.iter("details") if element.get("id") == anchor]
        names = ["".join(name.itertext()) for name in entry.iter("dt")]
        found = {}
        for name, value in zip(names, entry.iter("dd"), strict=True):
            link = next(value.iter("a"), None)
            found[name] = "".join(value.itertext()) if link is None else self.record(link.get("href")[1:])[name]
        return found


def exact(element: Element) -> str:
    """The text of an element, of `data` elements their value, without marks of further records, with single spaces."""

    def texts(one: Element) -> list[str]:
        if one.tag in ("data", "sup"):
            return [one.get("value") or "", one.tail or ""]
        inside = [text for child in one for text in texts(child)]
        return [one.text or "", *inside, one.tail or ""]

    return re.sub(r"\s+", " ", "".join(texts(element)).removesuffix(element.tail or "")).strip()


def write_suite(folder: Path, measured: str = "") -> Path:
    """A table of `glue` with dense, a method and its random twin on one task, and their records; returns `folder`.

    Args:
        measured: what the table has for the scores, if not the records' own.
    """
    store, lines = RunStore(folder), [COLUMNS]
    for method, of, score, speed in (("dense", "", 0.8, 1), ("ltp", "", 0.75, 2), ("random", "ltp", 0.5, 2)):
        config = RunConfig(kind="finetune", task="mood", method=method, backbone="b", data={}, seed=42)
        result = {"scores": {"accuracy": score}, "retention": [1.0, 0.9], "cost": {"ffn_share": [1.0, 0.25]}}
        metrics = {"metric": "accuracy", "score": score, "train_seconds": 3.2, "splits": {"test": result}}
        store.write(config, make_record(config, started_at="2026-01-01T00:00:00", wall_s=1.0, metrics=metrics))
        title = {"dense": "Dense", "ltp": "LTP"}.get(method, "Random, schedule of LTP")
        padding = "baseline" if method == "dense" else "none"
        shown = measured or f"{100 * score:.6g}"
        lines.append(
            f'Tiny,{method},{of},"{title}",,{padding},Mood,mood/test,accuracy,{shown},,1,{speed},{speed},1,0.62,'
            f"{config.hash},,,,,,"
        )
    path = folder / "tables" / "glue-local.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text("# Table 3\n\nCommand: `python -m benchmarks.glue --tasks mood`\n")
    return folder
