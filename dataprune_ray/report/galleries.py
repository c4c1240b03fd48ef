"""Galleries: rows as cards, as many as the page has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dataprune_ray.report import formats
from dataprune_ray.report.data import Gallery, GalleryItem
from dataprune_ray.report.thumbnails import Thumbnail, thumbnail

MAX_GALLERIES = 40
MAX_FIELDS = 16
_OVERHEAD = 1_500  # bytes of markup of one card, at most


@dataclass(frozen=True)
class Card:
    """One row, ready to show."""

    file: str
    row: int
    key: str | None
    label: str | None
    score: str
    kept: bool
    image: Thumbnail | None
    note: str | None  # why there is no image
    text: str | None
    text_left_out: int
    fields: tuple[tuple[str, str], ...]
    fields_left_out: int


@dataclass(frozen=True)
class Shelf:
    """A gallery with the cards that found room and the number of those that did not."""

    title: str
    caption: str
    cards: tuple[Card, ...]
    left_out: int
    pictures: bool  # every card is a picture: a denser grid


def build(galleries: Sequence[Gallery], budget: int) -> tuple[tuple[Shelf, ...], int]:
    """The galleries with the cards that fit into ``budget`` bytes, and the galleries left out.

    Room is given out in turns, the first card of each gallery before the second of any; so each
    gallery loses cards from its end only, and none is starved by the one before it.
    """
    shown = galleries[:MAX_GALLERIES]
    cards: list[list[Card]] = [[] for _ in shown]
    open_shelves = set(range(len(shown)))
    turn = 0
    while open_shelves:
        for index in sorted(open_shelves):
            if turn >= len(shown[index].items):
                open_shelves.discard(index)
                continue
            card = _card(shown[index].items[turn])
            cost = _cost(card)
            if cost > budget:
                open_shelves.discard(index)
                continue
            budget -= cost
            cards[index].append(card)
        turn += 1
    shelves = tuple(_shelf(gallery, row) for gallery, row in zip(shown, cards, strict=True))
    return shelves, len(galleries) - len(shown)


def _shelf(gallery: Gallery, cards: Sequence[Card]) -> Shelf:
    return Shelf(
        title=formats.clip(gallery.title, 200),
        caption=formats.clip(gallery.caption, 1_000),
        cards=tuple(cards),
        left_out=len(gallery.items) - len(cards),
        pictures=all(item.image is not None for item in gallery.items),
    )


def _card(item: GalleryItem) -> Card:
    image = None if item.image is None else thumbnail(item.image)
    text_limit = 600
    text = item.text
    return Card(
        file=formats.clip(item.file, 300),
        row=item.row,
        key=None if item.key is None else formats.clip(item.key, 120),
        label=None if item.label is None else formats.clip(item.label, 120),
        score=formats.score(item.score),
        kept=item.kept,
        image=image if isinstance(image, Thumbnail) else None,
        note=image if isinstance(image, str) else None,
        text=None if text is None else text[:text_limit],
        text_left_out=max(0, len(text or "") - text_limit),
        fields=tuple(
            (formats.clip(name, 80), formats.clip(value, 160))
            for name, value in item.fields[:MAX_FIELDS]
        ),
        fields_left_out=max(0, len(item.fields) - MAX_FIELDS),
    )


def _cost(card: Card) -> int:
    """Bytes that the card takes on the page, at most."""
    names = formats.weight(card.key, card.label) * 2 + formats.weight(card.file) * 2
    breaks = 5 * card.file.count("/")
    fields = sum(formats.weight(name, value) + 60 for name, value in card.fields)
    image = len(card.image.uri) if card.image else 0
    return _OVERHEAD + names + breaks + formats.weight(card.text) + fields + image
