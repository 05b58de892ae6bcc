"""One synthetic video: a street filmed by a moving camera, in changing light, with bad frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vss_models.data import synthetic_scene as scene

_OVERSAMPLING = 2

UNDISTURBED = "none"
DISTURBANCES = {
    "noise burst": 0.13,
    "motion blur": 0.11,
    "wrong exposure": 0.1,
    "glare": 0.06,
    "dropout": 0.1,
}
"""What can happen to a frame, and how often it does."""


@dataclass(frozen=True)
class _Layer:
    """What a panorama of the scene shows: colours and where they are, of the rows with any."""

    rows: slice
    colour: np.ndarray
    solid: np.ndarray

    @classmethod
    def of(cls, panorama: np.ndarray) -> _Layer:
        """Takes a panorama (height, width, 4), whose last channel is its opacity."""
        solid = panorama[..., 3] > 0
        occupied = np.flatnonzero(solid.any(axis=1))
        rows = slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(0, 0)
        return cls(rows, panorama[rows, :, :3], solid[rows])


@dataclass(frozen=True)
class _Mover:
    """An object on the street or in the sky, with its phases of movement.

    `start` and `speed` are in pixels of the painted scene; `parallax` is how far it moves on the
    screen for one pixel of camera pan.
    """

    label: int
    phases: list[scene.Sprite]
    bottom: int
    start: float
    speed: float
    parallax: float


class SyntheticVideo:
    """A scene whose frames can be painted in any order.

    Args:
        size: (height, width) of the frames.
        seed: Seeds of this video; frame numbers are added to them for what changes by frame.
    """

    def __init__(self, size: tuple[int, int], seed: tuple[int, ...]) -> None:
        self.size = size
        self.seed = seed
        rng = np.random.default_rng(seed)
        self.height, self.width = size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING
        height, width = self.height, self.width
        self.horizon = int(height * rng.uniform(0.4, 0.52))

        self.pan_reach = width * rng.uniform(0.15, 0.45)
        self.pan_period = rng.uniform(60, 130)
        self.pan_phase = rng.uniform(0, 2 * np.pi)
        self.light_period = rng.uniform(25, 70)
        self.light_phase = rng.uniform(0, 2 * np.pi)
        self.tint = np.array([1, 1, 1]) + rng.uniform(-0.12, 0.12) * np.array([1, 0.1, -1])
        self.exposure = rng.uniform(0.8, 1.1)

        panorama = int(width + 2 * self.pan_reach) + 2
        self.sky = self._paint_sky(rng, panorama)
        self.skyline = _Layer.of(scene.paint_skyline(rng, panorama, height, self.horizon))
        foot = self.horizon + int(0.06 * height)
        self.trees = _Layer.of(scene.paint_trees(rng, panorama, height, foot))
        self.tiles = [scene.noise(rng, scene.TILE, scene.TILE, cells) for cells in (24, 64, 128)]
        self.strip = rng.uniform(0.14, 0.3)
        self.water_level = rng.uniform(-0.5, 0.5)
        self.road = np.array(scene.vary(rng, (104, 102, 104), 20), dtype=np.float32)
        self.grass = np.array(scene.vary(rng, (96, 128, 58), 16), dtype=np.float32)
        self.water = np.array(scene.vary(rng, (66, 108, 132), 16), dtype=np.float32)
        self.movers = self._place_movers(rng)

    def _paint_sky(self, rng: np.random.Generator, width: int) -> np.ndarray:
        """Sky with clouds down to the horizon: (rows, width, 3)."""
        rows = self.horizon
        top = np.array(scene.vary(rng, (92, 148, 214), 22), dtype=np.float32)
        low = np.array(scene.vary(rng, (200, 214, 226), 14), dtype=np.float32)
        height = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
        clouds = np.clip(scene.noise(rng, rows, width, 20) * 2.2 + rng.uniform(-0.6, 0.3), 0, 1)
        sky = top * (1 - height) + low * height
        return sky + (np.float32(240) - sky) * clouds[..., None] * 0.85

    def _place_movers(self, rng: np.random.Generator) -> list[_Mover]:
        """Cars, persons and posts, farthest first, then balloons."""
        height, width = self.height, self.width
        kinds = (
            [scene.CAR] * int(rng.integers(2, 5))
            + [scene.PERSON] * int(rng.integers(2, 6))
            + [scene.POLE] * int(rng.integers(1, 4))
        )
        movers = []
        for kind in kinds:
            depth = rng.uniform(0.38, 0.98)
            bottom = int(self.horizon + depth * (height - self.horizon))
            scale = 0.3 + 0.7 * depth
            forward = rng.random() < 0.5
            direction = 1 if forward else -1
            start = rng.uniform(0, 3 * width)
            if kind == scene.CAR:
                length = max(24, int(height * scale * rng.uniform(0.42, 0.6)))
                phases = [scene.car_sprite(rng, length, not forward)]
                speed = direction * rng.uniform(0.008, 0.03) * scale * width
            elif kind == scene.PERSON:
                tall = max(14, int(height * scale * rng.uniform(0.3, 0.4)))
                phases = scene.person_sprites(rng, tall, not forward)
                speed = direction * rng.uniform(0.003, 0.008) * scale * width
            else:
                tall = max(20, int(height * scale * rng.uniform(0.6, 0.85)))
                phases = [scene.pole_sprite(rng, tall)]
                speed = 0.0
            movers.append(_Mover(kind, phases, bottom, start, speed, 0.35 + 0.9 * depth))
        movers.sort(key=lambda mover: mover.bottom)
        for _ in range(rng.integers(0, 3)):
            tall = max(8, int(height * rng.uniform(0.07, 0.14)))
            bottom = int(rng.uniform(0.15, 0.5) * self.horizon) + tall // 2
            start = rng.uniform(0, 2 * width)
            speed = rng.uniform(-0.006, 0.006) * width
            balloon = scene.balloon_sprite(rng, tall)
            movers.append(_Mover(scene.VOID, [balloon], bottom, start, speed, 0.15))
        return movers

    def frame(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Paint one frame.

        Returns:
            Image (height, width, 3) uint8 and mask (height, width) uint8: 0 is void, classes
            count from 1.
        """
        rng = self._frame_rng(number)
        pan = self.pan_reach * np.sin(2 * np.pi * number / self.pan_period + self.pan_phase)
        colour = np.empty((self.height, self.width, 3), dtype=np.float32)
        labels = np.empty((self.height, self.width), dtype=np.uint8)
        self._paint_sky_and_buildings(colour, labels, pan, number)
        self._paint_ground(colour, labels, pan, number)
        self._paint_layer(colour, labels, self.trees, scene.TREE, 0.55 * pan)
        for mover in self.movers:
            self._paint_mover(colour, labels, mover, pan, number)
        colour *= self._light(number)[..., None]

        step = _OVERSAMPLING  # a sum of views takes less time than a mean over two axes
        parts = [colour[row::step, column::step] for row in range(step) for column in range(step)]
        colour = sum(parts[1:], start=parts[0]) / np.float32(step * step)
        image = film(colour * self.tint.astype(np.float32), draw_disturbance(rng), rng)
        return image, np.ascontiguousarray(labels[1::step, 1::step])

    def disturbance(self, number: int) -> str:
        """What happens to a frame: one of `DISTURBANCES`, or `UNDISTURBED`."""
        return draw_disturbance(self._frame_rng(number))

    def _frame_rng(self, number: int) -> np.random.Generator:
        # From 1, because a seed sequence takes (s, 0) for (s,), the seed of the scene.
        return np.random.default_rng((*self.seed, number + 1))

    def _paint_sky_and_buildings(
        self, colour: np.ndarray, labels: np.ndarray, pan: float, number: int
    ) -> None:
        """Everything behind the ground; the clouds drift."""
        left = round(float(0.1 * pan + self.pan_reach))
        clouds = np.roll(self.sky, -number // 2, axis=1)
        colour[: self.horizon] = clouds[:, left : left + self.width]
        labels[: self.horizon] = scene.SKY
        self._paint_layer(colour, labels, self.skyline, scene.BUILDING, 0.35 * pan)

    def _paint_layer(
        self, colour: np.ndarray, labels: np.ndarray, layer: _Layer, label: int, shift: float
    ) -> None:
        """Paste the part of a panorama that the camera sees."""
        left = round(float(shift + self.pan_reach))
        columns = slice(left, left + self.width)
        rows, solid = layer.rows, layer.solid[:, columns]
        np.copyto(colour[rows], layer.colour[:, columns], where=solid[..., None])
        labels[rows][solid] = label

    def _paint_ground(
        self, colour: np.ndarray, labels: np.ndarray, pan: float, number: int
    ) -> None:
        """Road, and between it and the horizon a strip of grass and water, in perspective."""
        depth = np.linspace(0, 1, self.height - self.horizon, dtype=np.float32)[:, None]
        away = 1 / (depth + 0.18)
        across = np.arange(self.width, dtype=np.float32)[None] - self.width / 2
        # Camera pan moves near rows more than far ones, as it does the movers.
        u = ((across + pan * (0.35 + 0.9 * depth)) * away * 0.5).astype(np.intp)
        v = (away * 60).astype(np.intp)
        coarse, middle, fine = self.tiles
        grain = _sample(fine, v, u)

        ground = self.road * (1 + 0.1 * _sample(coarse, v // 2, u >> 1) + 0.12 * grain)[..., None]
        on_line = np.flatnonzero(np.abs(depth - 0.62) < 0.018)
        middle_line = slice(on_line[0], on_line[-1] + 1)
        ground[middle_line][u[middle_line] % 60 < 34] = 215
        kind = np.full(grain.shape, scene.ROAD, dtype=np.uint8)
        colour[self.horizon :], labels[self.horizon :] = ground, kind

        # The rows that may hold more than the road.
        strip = slice(0, int(np.count_nonzero(depth < self.strip + 0.09)))
        ground, kind = colour[self.horizon :][strip], labels[self.horizon :][strip]
        depth, u, v, grain = depth[strip], u[strip], v[strip], grain[strip]
        edge = self.strip + 0.05 * _sample(coarse, 7, u // 3)
        kerb = (depth >= edge) & (depth < edge + 0.035)
        ground[kerb] = 172 + 20 * grain[kerb][:, None]
        far = depth < edge
        wet = far & (_sample(coarse, 40, u >> 2) * 1.6 > self.water_level)
        dry = far & ~wet
        blades = _sample(middle, v * 3, u * 2)
        ground[dry] = self.grass * (1 + 0.3 * blades + 0.2 * grain)[dry][:, None]
        waves = _sample(middle, v * 4 + number, u + 2 * number)
        ground[wet] = self.water * (1 + 0.28 * waves)[wet][:, None]
        ground[wet & (waves > 0.62)] = 205
        kind[dry], kind[wet] = scene.GRASS, scene.WATER

    def _paint_mover(
        self, colour: np.ndarray, labels: np.ndarray, mover: _Mover, pan: float, number: int
    ) -> None:
        """Paste an object; one that leaves on a side comes back later on the other."""
        travelled = mover.speed * number
        stride = int(abs(travelled) / (0.03 * self.height)) if len(mover.phases) > 1 else 0
        sprite = mover.phases[stride % len(mover.phases)]
        height, width = sprite.solid.shape
        lap = max(2.0 * self.width, self.width + 2.0 * width)
        left = int((mover.start + travelled - pan * mover.parallax) % lap) - width
        top = mover.bottom - height
        rows = slice(max(top, 0), min(top + height, self.height))
        columns = slice(max(left, 0), min(left + width, self.width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        part = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        opacity = sprite.opacity[part][..., None]
        below = colour[rows, columns]
        colour[rows, columns] = below + (sprite.colour[part] - below) * opacity
        labels[rows, columns][sprite.solid[part]] = mover.label

    def _light(self, number: int) -> np.ndarray:
        """Brightness of each pixel: slow changes of the day and the shadow of a passing cloud."""
        turn = 2 * np.pi * number / self.light_period + self.light_phase
        columns = np.arange(self.width, dtype=np.float32) / self.width
        cloud = 0.2 * np.sin(2 * np.pi * columns - 1.7 * turn)
        vertical = np.linspace(1.04, 0.96, self.height, dtype=np.float32)[:, None]
        return (self.exposure * (1 + 0.16 * np.sin(turn)) + cloud[None]) * vertical


def _sample(tile: np.ndarray, rows: np.ndarray | int, columns: np.ndarray) -> np.ndarray:
    """Reads a tile that repeats in both directions at a row, or rows (R, 1), and columns (R, W)."""
    last = scene.TILE - 1  # a power of two less one, which cuts a number down to a place in it
    return tile.ravel().take((rows & last) * scene.TILE + (columns & last))


def draw_disturbance(rng: np.random.Generator) -> str:
    """Draws what happens to a frame: one of `DISTURBANCES`, or `UNDISTURBED`.

    Each frame is drawn on its own, so that a frame's neighbours often show what it hides.
    """
    drawn = rng.random()
    for name, probability in DISTURBANCES.items():
        drawn -= probability
        if drawn < 0:
            return name
    return UNDISTURBED


def film(colour: np.ndarray, disturbance: str, rng: np.random.Generator) -> np.ndarray:
    """Films a frame: sensor noise always, and perhaps something worse.

    Args:
        colour: (height, width, 3) float, 0..255.
        disturbance: One of `DISTURBANCES`, or `UNDISTURBED`.
        rng: Source of randomness.

    Returns:
        (height, width, 3) uint8.
    """
    height, width, _ = colour.shape
    deviation = 6.0
    if disturbance == "noise burst":
        deviation = rng.uniform(28, 48)
    elif disturbance == "motion blur":
        length = max(3, int(width * rng.uniform(0.03, 0.06)))
        padded = np.pad(colour, ((0, 0), (length // 2, length - length // 2), (0, 0)), mode="edge")
        sums = np.cumsum(padded, axis=1)
        colour = (sums[:, length:] - sums[:, :-length]) / length
    elif disturbance == "wrong exposure":
        colour = colour * (rng.uniform(0.3, 0.45) if rng.random() < 0.6 else rng.uniform(1.6, 1.9))
    elif disturbance == "glare":
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) / height
        row, column = rng.uniform(0, 0.6), rng.uniform(0, width / height)
        distance = (rows - row) ** 2 + (columns - column) ** 2
        glare = 0.95 * np.exp(-distance / rng.uniform(0.05, 0.15))[..., None]
        colour = colour + (np.array([255, 246, 225], dtype=np.float32) - colour) * glare
    elif disturbance == "dropout":
        lost = colour.copy()
        rows, columns = int(height * rng.uniform(0.4, 0.6)), int(width * rng.uniform(0.4, 0.6))
        top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
        lost[top : top + rows, left : left + columns] = 0
        colour = lost
    grain = rng.standard_normal(colour.shape, dtype=np.float32) * np.float32(deviation)
    return np.clip(colour + grain, 0, 255).astype(np.uint8)
