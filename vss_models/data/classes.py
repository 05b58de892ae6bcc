"""Class names, colours and the mapping from stored mask values to class numbers."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vss_models.data.text import read_lines

IGNORED = 255

# fmt: off
VSPW_CLASSES: tuple[str, ...] = (
    "wall", "ceiling", "door", "stair", "ladder", "escalator", "Playground_slide",
    "handrail_or_fence", "window", "rail", "goal", "pillar", "pole", "floor", "ground", "grass",
    "sand", "athletic_field", "road", "path", "crosswalk", "building", "house", "bridge", "tower",
    "windmill", "well_or_well_lid", "other_construction", "sky", "mountain", "stone", "wood", "ice",
    "snowfield", "grandstand", "sea", "river", "lake", "waterfall", "water",
    "billboard_or_Bulletin_Board", "sculpture", "pipeline", "flag", "parasol_or_umbrella",
    "cushion_or_carpet", "tent", "roadblock", "car", "bus", "truck", "bicycle", "motorcycle",
    "wheeled_machine", "ship_or_boat", "raft", "airplane", "tyre", "traffic_light", "lamp",
    "person", "cat", "dog", "horse", "cattle", "other_animal", "tree", "flower", "other_plant",
    "toy", "ball_net", "backboard", "skateboard", "bat", "ball",
    "cupboard_or_showcase_or_storage_rack", "box", "traveling_case_or_trolley_case", "basket",
    "bag_or_package", "trash_can", "cage", "plate", "tub_or_bowl_or_pot", "bottle_or_cup", "barrel",
    "fishbowl", "bed", "pillow", "table_or_desk", "chair_or_seat", "bench", "sofa", "shelf",
    "bathtub", "gun", "commode", "roaster", "other_machine", "refrigerator", "washing_machine",
    "Microwave_oven", "fan", "curtain", "textiles", "clothes", "painting_or_poster", "mirror",
    "flower_pot_or_vase", "clock", "book", "tool", "blackboard", "tissue", "screen_or_television",
    "computer", "printer", "Mobile_phone", "keyboard", "other_electronic_product", "fruit", "food",
    "instrument", "train",
)
# fmt: on
"""The 124 classes of VSPW (Miao et al., CVPR 2021) in label order, mask value 1 first."""


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the classes, in the order of the class numbers.

    Attributes:
        names: One name per class.
        colours: One (red, green, blue) per class, each 0..255.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)

    def palette(self) -> np.ndarray:
        """Colours by label as a (256, 3) uint8 array; labels without a class are black."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(self.colours)] = self.colours
        return table


def generated_colours(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours that depend on nothing but their number: neighbours differ most in hue."""
    colours = []
    for number in range(num_classes):
        # Steps of the golden ratio never bunch up, however many classes there are.
        hue = (number * 0.6180339887498949 + 0.03) % 1.0
        saturation = (0.75, 0.5, 0.95)[number % 3]
        value = (0.95, 0.7, 0.8, 0.5)[number % 4]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)


def vspw_classes() -> ClassTable:
    """The classes of VSPW with generated colours."""
    return ClassTable(VSPW_CLASSES, generated_colours(len(VSPW_CLASSES)))


def numbered_classes(num_classes: int) -> ClassTable:
    """Placeholder names ``class_0`` ... for a data set that names no classes."""
    names = tuple(f"class_{number}" for number in range(num_classes))
    return ClassTable(names, generated_colours(num_classes))


def label_table(mapping: str | Mapping[int, int], num_classes: int | None = None) -> np.ndarray:
    """Class number for each of the 256 values a mask can hold.

    Args:
        mapping: ``"vspw"``: 0 and 255 are ignored and every other value is one more than its class.
            ``"identity"``: the value is the class and 255 is ignored. Or a dictionary from value to
            class (255 for ignored); values it does not list are not allowed in a mask.
        num_classes: Number of classes, 1..255; None allows all.

    Returns:
        (256,) int16: the class number, 255 where the pixel is ignored, -1 where the value is not
        allowed.

    Raises:
        ValueError: The mapping is unknown or leaves the range of the classes.
    """
    limit = 255 if num_classes is None else num_classes
    if not 1 <= limit <= 255:
        raise ValueError(
            f"num_classes must be 1..255 (255 marks ignored pixels), got {num_classes}"
        )
    if isinstance(mapping, str):
        if mapping not in ("vspw", "identity"):
            raise ValueError(
                f"label_mapping must be 'vspw', 'identity' or a dictionary from mask value to "
                f"class, got {mapping!r}"
            )
        table = np.arange(256, dtype=np.int16)
        if mapping == "vspw":
            table -= 1
            table[[0, 255]] = IGNORED
        table[(table >= limit) & (table != IGNORED)] = -1
        return table
    table = np.full(256, -1, dtype=np.int16)
    for value, number in mapping.items():
        if not 0 <= value <= 255:
            raise ValueError(f"label_mapping has the mask value {value}; masks hold 0..255")
        if number != IGNORED and not 0 <= number < limit:
            raise ValueError(
                f"label_mapping sends {value} to {number}, expected a class below {limit} or "
                f"{IGNORED} for ignored"
            )
        table[value] = number
    return table


def read_classes(path: Path, mapping: str | Mapping[int, int] = "vspw") -> ClassTable:
    """Reads a class list: one ``<mask value> <name> [<red> <green> <blue>]`` a line.

    Lines whose mask value is ignored (0 in the VSPW convention) name the void and are left out.

    Args:
        path: The text file.
        mapping: How mask values become classes, see :func:`label_table`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line cannot be read, or the classes are not numbered 0, 1, 2, ... without gaps
            and repeats; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such class list")
    table = label_table(mapping)
    found: dict[int, tuple[str, tuple[int, int, int] | None]] = {}
    for line_number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        value, name, colour = _parse_class_line(line.split(), f"{path}, line {line_number}")
        number = int(table[value])
        if number == IGNORED:
            continue
        if number < 0 or number in found:
            reason = "is not in the label mapping" if number < 0 else "repeats an earlier class"
            raise ValueError(f"{path}, line {line_number}: mask value {value} {reason}")
        found[number] = (name, colour)
    if sorted(found) != list(range(len(found))) or not found:
        raise ValueError(
            f"{path}: classes must be numbered from 0 without gaps after the label mapping "
            f"{mapping!r}, got {sorted(found)}"
        )
    generated = generated_colours(len(found))
    ordered = [found[number] for number in range(len(found))]
    return ClassTable(
        tuple(name for name, _ in ordered),
        tuple(colour or fallback for (_, colour), fallback in zip(ordered, generated, strict=True)),
    )


def _parse_class_line(
    words: Sequence[str], where: str
) -> tuple[int, str, tuple[int, int, int] | None]:
    """Splits one line of a class list into mask value, name and colour."""
    has_colour = len(words) >= 5 and all(word.isdecimal() for word in words[-3:])
    name = " ".join(words[1:-3] if has_colour else words[1:])
    numbers = [int(word) for word in (words[-3:] if has_colour else [])]
    if not words[0].isdecimal() or int(words[0]) > 255 or not name or max(numbers, default=0) > 255:
        raise ValueError(
            f"{where}: expected '<mask value> <name> [<red> <green> <blue>]' with numbers up to "
            f"255, got {' '.join(words)!r}"
        )
    colour = (numbers[0], numbers[1], numbers[2]) if has_colour else None
    return int(words[0]), name, colour
