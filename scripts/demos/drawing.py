"""The vision demo's pictures: a few shapes of one colour on paper, and what can be asked of them.

A picture shows one shape, in one of nine places, or two to four alike. Size, tilt, tint, paper,
canvas and where exactly a shape stands are drawn at random, so no two pictures are the same;
every question has exactly one right answer.
"""

import colorsys
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
# Ranges of hue in degrees, saturation and value: what paint programs and people call so.
COLOURS = {
    "red": ((-8, 6), (0.8, 1), (0.75, 1)),
    "green": ((95, 145), (0.6, 1), (0.45, 1)),
    "blue": ((212, 245), (0.65, 1), (0.6, 1)),
    "yellow": ((48, 60), (0.8, 1), (0.9, 1)),
    "black": ((0, 360), (0, 0.2), (0, 0.15)),
}
NUMBERS = ("one", "two", "three", "four")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")

WHAT = ("What is in the picture?", "Describe the picture.", "What do you see?")
HOW_MANY = ("How many shapes are there?", "How many are there?")
WHICH_COLOUR = ("What colour is it?", "Which colour?")
WHICH_SHAPE = ("What shape is it?", "Which shape?")
WHERE = ("Where is it?", "Where in the picture is it?")
QUESTIONS = WHAT + HOW_MANY + WHICH_COLOUR + WHICH_SHAPE + WHERE


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        shape: of SHAPES.
        colour: of COLOURS.
        count: 1 to 4.
        place: row and column of a single shape in the thirds of the picture; None for several.
    """

    shape: str
    colour: str
    count: int
    place: tuple[int, int] | None

    @property
    def place_name(self) -> str:
        """Such as "top left", "top" (in the middle of it) or "centre"."""
        row, column = self.place
        return " ".join(filter(None, (ROWS[row], COLUMNS[column]))) or "centre"

    @property
    def description(self) -> str:
        """Such as "a red circle, top left" or "three blue squares"."""
        if self.count == 1:
            return f"a {self.colour} {self.shape}, {self.place_name}"
        return f"{NUMBERS[self.count - 1]} {self.colour} {self.shape}s"

    def answer(self, question: str) -> str | None:
        """To one of QUESTIONS; None where it makes no sense: several shapes have no one place."""
        if question in WHAT:
            return self.description
        if question in HOW_MANY:
            return NUMBERS[self.count - 1]
        if question in WHICH_COLOUR:
            return self.colour
        if question in WHICH_SHAPE:
            return self.shape
        if question in WHERE:
            return None if self.place is None else self.place_name
        raise ValueError(f"{question!r} is not one of the demo's questions")


def random_scene(rng: random.Random) -> Scene:
    """Half of the scenes have one shape, the others two to four."""
    count = rng.choice((1, 1, 1, 2, 3, 4))
    place = (rng.randrange(3), rng.randrange(3)) if count == 1 else None
    return Scene(rng.choice(SHAPES), rng.choice(list(COLOURS)), count, place)


def random_question(scene: Scene, rng: random.Random) -> str:
    """One that the scene answers; half of the time for all there is."""
    questions = rng.choice((WHAT, HOW_MANY + WHICH_COLOUR + WHICH_SHAPE + WHERE))
    return rng.choice([text for text in questions if scene.answer(text) is not None])


def draw(scene: Scene, rng: random.Random, width: int, height: int) -> Image.Image:
    """The scene as an RGB picture of width x height pixels."""
    paper = rng.randint(225, 255)
    picture = Image.new("RGB", (width, height), tuple(paper - rng.randint(0, 6) for _ in range(3)))
    canvas = ImageDraw.Draw(picture)
    colour = _tint(scene.colour, rng)
    for x, y, radius in _layout(scene, rng, width, height):
        outline = _outline(scene.shape, rng)
        canvas.polygon([(x + radius * right, y + radius * down) for right, down in outline], colour)
    return picture


def _layout(
    scene: Scene, rng: random.Random, width: int, height: int
) -> list[tuple[float, float, float]]:
    """Centre and radius of every shape, in pixels: inside the picture, apart from each other."""
    short = min(width, height)
    if scene.count == 1:
        radius = short * rng.uniform(0.12, 0.22)
        row, column = scene.place
        return [(_within(column, rng, width, radius), _within(row, rng, height, radius), radius)]
    largest = short * rng.uniform(0.12, 0.15)
    while True:
        found: list[tuple[float, float, float]] = []
        for _ in range(20):
            radius = largest * rng.uniform(0.85, 1)
            x = rng.uniform(radius, width - radius)
            y = rng.uniform(radius, height - radius)
            if all(math.hypot(x - a, y - b) > 1.2 * (radius + other) for a, b, other in found):
                found.append((x, y, radius))
            if len(found) == scene.count:
                return found


def _within(third: int, rng: random.Random, side: int, radius: float) -> float:
    """A centre in that third of the side, clear of its neighbours and of the picture's edge."""
    clear = 0.03 * side
    low, high = third * side / 3 + clear, (third + 1) * side / 3 - clear
    return rng.uniform(max(low, radius), min(high, side - radius))


def _tint(name: str, rng: random.Random) -> tuple[int, ...]:
    hue, saturation, value = (rng.uniform(*limits) for limits in COLOURS[name])
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value))


def _outline(shape: str, rng: random.Random) -> list[tuple[float, float]]:
    """Corners of a shape within the unit circle, y down: tilted and stretched as by hand."""
    if shape == "circle":
        corners = [(math.cos(angle), math.sin(angle)) for angle in _angles(64, 0)]
        corners = [(0.9 * x, 0.9 * y) for x, y in corners]
    elif shape == "square":
        corners = [(math.cos(angle), math.sin(angle)) for angle in _angles(4, 45)]
    else:
        corners = [(math.cos(angle), math.sin(angle)) for angle in _angles(3, -90)]
        corners[0] = (rng.uniform(-0.3, 0.3), -0.95)
    squeeze = rng.uniform(0.82, 1)
    wide, high = rng.choice(((squeeze, 1), (1, squeeze)))
    tilt = math.radians(rng.uniform(-12, 12))
    return [
        (
            wide * x * math.cos(tilt) - high * y * math.sin(tilt),
            wide * x * math.sin(tilt) + high * y * math.cos(tilt),
        )
        for x, y in corners
    ]


def _angles(corners: int, first: float) -> list[float]:
    return [math.radians(first + 360 * corner / corners) for corner in range(corners)]
