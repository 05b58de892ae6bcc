"""Street scenes for the synthetic data set: a panorama of layers, moving objects and a camera.

A scene is painted at twice the size of the frames, so that halving it smooths the edges. All
lengths are in pixels of that larger picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

VOID = 0
SKY, BUILDING, TREE, GRASS, WATER, ROAD, CAR, PERSON, POLE = range(1, 10)
TILE = 512


def noise(rng: np.random.Generator, height: int, width: int, cells: float) -> np.ndarray:
    """Smooth noise that tiles in both directions.

    Args:
        rng: Source of randomness.
        height: Rows.
        width: Columns.
        cells: Number of bumps along the height, at most.

    Returns:
        (height, width) float32, about -1..1.
    """
    total = np.zeros((height, width), dtype=np.float32)
    weight, count = 1.0, max(2.0, cells / 8)
    while count <= max(2.0, cells):
        rows, columns = round(count), max(2, round(count * width / height))
        grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        # Two repeated cells on each side, cut off after the resize, make the ends meet.
        image = Image.fromarray(np.pad(grid, 2, mode="wrap"))
        box = (2, 2, columns + 2, rows + 2)
        total += weight * np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))
        weight, count = weight * 0.75, count * 2
    return total / max(float(np.abs(total).max()), 1e-6)


def vary(rng: np.random.Generator, colour: tuple[int, ...], amount: float = 18) -> tuple[int, ...]:
    """A colour near the given one: a common shift of brightness and a smaller one per channel."""
    shift = rng.uniform(-amount, amount) + rng.uniform(-amount / 2, amount / 2, 3)
    return tuple(int(c) for c in np.clip(np.array(colour) + shift, 0, 255))


@dataclass(frozen=True)
class Sprite:
    """A painted object.

    Attributes:
        colour: (h, w, 3) float32, 0..255.
        opacity: (h, w) float32; what is partly transparent is shadow.
        solid: (h, w) bool, where the object's label goes.
    """

    colour: np.ndarray
    opacity: np.ndarray
    solid: np.ndarray


def finish_sprite(rng: np.random.Generator, image: Image.Image, shadow: float) -> Sprite:
    """Turn a painted RGBA image into a sprite with some texture, its feet in a shadow."""
    pixels = np.asarray(image, dtype=np.float32)
    solid = pixels[..., 3] > 0
    height, width = solid.shape
    grain = rng.normal(0, 7, (height, width, 1)).astype(np.float32)
    shade = np.linspace(8, -14, height, dtype=np.float32)[:, None, None]
    colour = np.where(solid[..., None], pixels[..., :3] + grain + shade, 20)
    rows, columns = np.mgrid[0:height, 0:width]
    thickness = max(2.0, 0.1 * min(height, width))
    ground = ((columns - width / 2) / (width / 2)) ** 2 + (
        (rows - height + thickness) / thickness
    ) ** 2
    opacity = np.where(solid, 1.0, np.where(ground < 1, shadow, 0.0)).astype(np.float32)
    return Sprite(np.clip(colour, 0, 255), opacity, solid)


def car_sprite(rng: np.random.Generator, length: int, faces_left: bool) -> Sprite:
    """A car, or one time in four a van, seen from the side."""
    van = rng.random() < 0.25
    height = int(length * (0.5 if van else 0.42))
    paints = ((190, 30, 35), (30, 60, 160), (230, 230, 232), (40, 42, 48), (225, 175, 30))
    paint = vary(rng, paints[rng.integers(len(paints))])
    roof = tuple(int(c * 0.8) for c in paint)
    image = Image.new("RGBA", (length, height))
    draw = ImageDraw.Draw(image)
    wheel = height * 0.19
    floor = height - wheel
    if van:
        cabin = [(0.03, floor), (0.03, 0.04 * height), (0.72, 0.04 * height), (0.97, floor)]
        panes = [(0.72, 0.62, 0.84)]
    else:
        cabin = [(0.16, 0.5 * height), (0.3, 0.05 * height), (0.66, 0.05 * height)]
        cabin.append((0.82, 0.5 * height))
        panes = [(0.25, 0.32, 0.47), (0.51, 0.51, 0.66)]
    draw.polygon([(x * length, y) for x, y in cabin], fill=(*roof, 255))
    top = 0.45 * height
    draw.rounded_rectangle((1, top, length - 2, floor), radius=0.1 * height, fill=(*paint, 255))
    glass = (*vary(rng, (120, 145, 165)), 255)
    for low, upper, high in panes:
        pane = [(low, top), (upper, 0.14 * height), (high, 0.14 * height), (high + 0.04, top)]
        draw.polygon([(x * length, y) for x, y in pane], fill=glass)
    for centre in (0.22, 0.78):
        for radius, fill in ((wheel, (18, 18, 20, 255)), (wheel * 0.5, (150, 150, 155, 255))):
            x, y = centre * length, height - wheel
            draw.ellipse((x - radius, y - radius, x + radius, y + radius - 1), fill=fill)
    draw.rectangle((length * 0.94, top * 1.15, length - 1, top * 1.4), fill=(255, 240, 170, 255))
    if faces_left:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return finish_sprite(rng, image, 0.55)


def person_sprites(rng: np.random.Generator, height: int, faces_left: bool) -> list[Sprite]:
    """A walking person in eight phases of a step."""
    width = max(6, int(height * 0.55))
    shirt = vary(rng, tuple(int(c) for c in rng.integers(40, 230, 3)))
    trousers = vary(rng, tuple(int(c) for c in rng.integers(25, 110, 3)))
    skins = ((232, 190, 160), (190, 135, 100), (110, 75, 55))
    skin = skins[rng.integers(len(skins))]
    seed = int(rng.integers(2**32))
    sprites = []
    for phase in range(8):
        image = Image.new("RGBA", (width, height))
        draw = ImageDraw.Draw(image)
        swing = np.sin(2 * np.pi * phase / 8)
        x, hip, neck = width / 2, height * 0.52, height * 0.19
        limb = max(2, round(height * 0.085))
        for side in (-1, 1):
            foot = x + side * swing * width * 0.36
            draw.line((x, hip, foot, height - 2), fill=(*trousers, 255), width=limb + 1)
        draw.rounded_rectangle(
            (x - width * 0.21, neck, x + width * 0.21, hip + 2), radius=2, fill=(*shirt, 255)
        )
        for side in (-1, 1):
            hand = x - side * swing * width * 0.34
            draw.line((x, neck + limb, hand, hip), fill=(*vary(rng, shirt, 10), 255), width=limb)
        radius = height * 0.085
        draw.ellipse((x - radius, neck - 2 * radius, x + radius, neck + 1), fill=(*skin, 255))
        draw.pieslice(
            (x - radius, neck - 2.1 * radius, x + radius, neck), 180, 360, fill=(45, 32, 25, 255)
        )
        if faces_left:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # One grain for all phases: clothes do not flicker.
        sprites.append(finish_sprite(np.random.default_rng(seed), image, 0.45))
    return sprites


def pole_sprite(rng: np.random.Generator, height: int) -> Sprite:
    """A lamp post or a road sign."""
    width = max(8, int(height * 0.24))
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    metal = (*vary(rng, (105, 108, 112)), 255)
    half = max(1, round(height * 0.013))
    x = width // 2
    draw.rectangle((x - half, 2, x + half, height - 1), fill=metal)
    if rng.random() < 0.5:
        draw.line((x, 3, width - 2, 3), fill=metal, width=max(2, half))
        draw.rectangle((width * 0.7, 3, width - 1, 4 + height * 0.025), fill=(245, 235, 190, 255))
    else:
        radius = width * 0.38
        sign = (200, 40, 40, 255) if rng.random() < 0.5 else (40, 80, 180, 255)
        draw.ellipse((x - radius, 1, x + radius, 1 + 2 * radius), fill=sign)
        draw.rectangle(
            (x - radius * 0.6, radius * 0.8, x + radius * 0.6, radius * 1.3), fill="white"
        )
    return finish_sprite(rng, image, 0.35)


def balloon_sprite(rng: np.random.Generator, height: int) -> Sprite:
    """A balloon in the sky; it belongs to no class."""
    image = Image.new("RGBA", (max(4, int(height * 0.75)), max(6, height)))
    draw = ImageDraw.Draw(image)
    width = image.width
    paint = tuple(int(c) for c in rng.integers(60, 255, 3))
    draw.ellipse((0, 0, width - 1, height * 0.78), fill=(*paint, 255))
    draw.ellipse((width * 0.3, 0, width * 0.7, height * 0.78), fill=(*vary(rng, paint, 60), 255))
    draw.rectangle((width * 0.38, height * 0.8, width * 0.62, height - 1), fill=(90, 60, 35, 255))
    return finish_sprite(rng, image, 0.0)


def paint_skyline(rng: np.random.Generator, width: int, height: int, base: int) -> np.ndarray:
    """A row of buildings standing on row `base`: (height, width, 4) float32, 0..255."""
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    walls = ((168, 120, 96), (150, 148, 142), (196, 178, 148), (112, 124, 138), (128, 84, 74))
    left = -rng.uniform(0, 0.3) * height
    while left < width:
        across = rng.uniform(0.18, 0.5) * height
        top = base - rng.uniform(0.12, 0.42) * height
        wall = vary(rng, walls[rng.integers(len(walls))])
        draw.rectangle((left, top, left + across, base), fill=(*wall, 255))
        if rng.random() < 0.35:
            gable = [(left, top), (left + across / 2, top - 0.09 * height), (left + across, top)]
            draw.polygon(gable, fill=(*vary(rng, (120, 62, 50)), 255))
        pane = max(3.0, rng.uniform(0.018, 0.03) * height)
        glass = vary(rng, (70, 84, 100) if rng.random() < 0.6 else (150, 185, 210), 25)
        for x in np.arange(left + pane, left + across - pane, pane * 2.1).tolist():
            for y in np.arange(top + pane, base - pane, pane * 2.4).tolist():
                lit = vary(rng, (235, 205, 130)) if rng.random() < 0.08 else vary(rng, glass, 12)
                draw.rectangle((x, y, x + pane, y + pane * 1.3), fill=(*lit, 255))
        left += across * rng.uniform(1.0, 1.25)
    return np.asarray(image, dtype=np.float32)


def paint_trees(rng: np.random.Generator, width: int, height: int, base: int) -> np.ndarray:
    """A loose row of trees standing on row `base`: (height, width, 4) float32, 0..255."""
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    left = rng.uniform(0, 0.4) * height
    while left < width:
        size = rng.uniform(0.16, 0.34) * height
        leaf = vary(rng, (58, 98, 42), 26)
        trunk = size * 0.07
        draw.rectangle((left - trunk, base - size, left + trunk, base), fill=(78, 58, 40, 255))
        for depth in range(14):
            x = left + rng.normal(0, 0.24) * size
            y = base - size * rng.uniform(0.6, 1.25)
            radius = size * rng.uniform(0.13, 0.26)
            lighter = tuple(min(255, int(c * (0.75 + 0.04 * depth))) for c in vary(rng, leaf, 12))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*lighter, 255))
        left += rng.uniform(0.3, 1.1) * height
    pixels = np.array(image, dtype=np.float32)
    leaves = noise(rng, TILE, TILE, 128)
    rows, columns = np.arange(height) % TILE, np.arange(width) % TILE
    pixels[..., :3] *= 1 + 0.55 * leaves[np.ix_(rows, columns)][..., None]
    return np.clip(pixels, 0, 255)
