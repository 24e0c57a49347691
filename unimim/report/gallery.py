"""The pictures of a report, arranged in rows that can be compared column by column."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from unimim.report import pictures
from unimim.report.data import Entry, Panel, Report

IMAGE_BUDGET = 3_500_000
"""Bytes of all images of a page; with charts and configurations the page stays under 5 MB."""


@dataclass(frozen=True)
class Image:
    """A cell of the gallery; `coarse` pictures are enlarged without smoothing."""

    uri: str
    alt: str
    caption: str
    coarse: bool


@dataclass(frozen=True)
class Strip:
    """A row of the gallery."""

    title: str
    note: str
    images: tuple[Image, ...]


def gallery(report: Report) -> list[tuple[Entry | None, list[Strip]]]:
    """Strips by entry. Panels that all entries share, such as the input, come first, once, under None."""
    entries = [entry for entry in report.entries if entry.panels]
    shared = {key for key in map(_identity, entries[0].panels) if _in_all(key, entries)} if len(entries) > 1 else set()
    groups: list[tuple[Entry | None, list[Panel]]] = [
        (entry, [panel for panel in entry.panels if _identity(panel) not in shared]) for entry in entries
    ]
    if shared:
        groups.insert(0, (None, [panel for panel in entries[0].panels if _identity(panel) in shared]))
    shown = [(entry, panels) for entry, panels in groups if panels]
    uris = pictures.fit((picture for _, panels in shown for panel in panels for picture in panel.images), IMAGE_BUDGET)
    known = {_captions(panel) for panel in shown[0][1]} if shared else set()
    return [(entry, list(_strips(entry, panels, uris, known if entry else set()))) for entry, panels in shown]


def _captions(panel: Panel) -> tuple[str, ...]:
    return tuple(picture.caption for picture in panel.images)


def _identity(panel: Panel) -> tuple[object, ...]:
    return panel.title, panel.note, _captions(panel), tuple(pictures.fingerprint(picture) for picture in panel.images)


def _in_all(key: tuple[object, ...], entries: Sequence[Entry]) -> bool:
    return all(key in map(_identity, entry.panels) for entry in entries)


def _strips(
    entry: Entry | None, panels: Sequence[Panel], uris: dict[str, str], known: Set[tuple[str, ...]]
) -> Iterator[Strip]:
    """Captions are shown the first time they occur."""
    seen = set(known)
    for panel in panels:
        captions = _captions(panel)
        owner = f"{entry.title}, " if entry else ""
        images = tuple(
            Image(
                uri=uris[pictures.fingerprint(picture)],
                alt=f"{owner}{panel.title}: {picture.caption or f'image {i + 1}'}",
                caption="" if captions in seen else picture.caption,
                coarse=max(picture.pixels.shape[:2]) < 96,
            )
            for i, picture in enumerate(panel.images)
        )
        seen.add(captions)
        yield Strip(panel.title, panel.note, images)
