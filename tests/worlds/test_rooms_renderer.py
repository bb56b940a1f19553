# SPDX-License-Identifier: Apache-2.0
"""The renderer of the rooms world against geometry that is worked out here."""

from __future__ import annotations

import numpy as np
import pytest

from aapt_fast.worlds.rooms.camera import Camera, rotation
from aapt_fast.worlds.rooms.house import Furnished, House, Thing, make_house
from aapt_fast.worlds.rooms.plan import DOOR_HEIGHT, WALL, Door, Plan, Room
from aapt_fast.worlds.rooms.renderer import Renderer
from aapt_fast.worlds.rooms.shell import Style
from aapt_fast.worlds.rooms.surfaces import Ball, Material, Piece
from aapt_fast.worlds.rooms.textures import TEXELS, library

GREY, RED, GREEN = (np.array(colour) for colour in ((0.5, 0.5, 0.5), (0.8, 0.0, 0.0), (0.0, 0.8, 0.0)))
HIGH = 2.6


def plain(colour: np.ndarray, glow: float = 0.0) -> Material:
    return Material("plain", (colour,) * 3, glow=glow)


def house_of(*pieces: Piece, has_leaf: bool = True) -> House:
    """Two rooms of 4 by 4 metres, side by side, with a door in the middle; the pieces stand in the first."""
    rooms = (Room((0, 0), (4, 4), HIGH), Room((4 + WALL, 0), (8 + WALL, 4), HIGH))
    door = Door(0, 1, 0, 4 + WALL / 2, 2.0, has_leaf, 1)
    style = Style(plain(GREY), plain(GREY), None, plain(GREY), plain(GREY), np.ones(3))
    things = tuple(Thing(piece, *piece.bounds(), True) for piece in pieces)
    furnished = tuple(Furnished(style, each, np.array([x, 2.3, 2.0])) for each, x in ((things, 2.0), ((), 6.0)))
    return House(Plan(rooms, (door,)), furnished, (plain(GREEN), plain(GREEN), plain(GREY)))


def pose(x: float, z: float, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    return np.array([x, 1.5, z, yaw, pitch, roll])


CLOSED, OPEN = np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]])


def expected_depth(camera: np.ndarray, size: int) -> np.ndarray:
    """Depth [size, size] of the walls, floor and ceiling of the first room, all of it closed."""
    place = Camera().places(size)
    y, x = np.meshgrid(-place, place, indexing="ij")
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ rotation(camera).T
    far = np.where(rays > 0, np.array([4, HIGH, 4]), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.where(rays == 0, np.inf, (far - camera[:3]) / rays)
    return hits.min(-1)


@pytest.mark.parametrize("turn", [(0.0, 0, 0), (0.7, -0.3, 0), (2.9, 0.2, 0.3), (-1.2, 0.5, -0.2)])
def test_depth_is_the_distance_to_walls_floor_and_ceiling(turn):
    camera = pose(1.5, 2.2, *turn)
    found = Renderer(house_of(), 64).render(camera, CLOSED).depth
    difference = np.abs(found - expected_depth(camera, 64))
    behind_skirting_and_frame = 0.07  # they stand out from the wall by up to so much
    assert (difference < 1e-4).mean() > 0.8 and np.quantile(difference, 0.98) < behind_skirting_and_frame


def test_a_ball_and_a_box_are_where_they_are():
    piece, box = Piece(), Piece()
    piece.ball((2.0, 1.5, 3.0), 0.4, plain(RED, glow=1.0))
    box.box((1.2, 0, 2.5), (1.5, 2, 3.0), plain(GREEN))
    picture = Renderer(house_of(piece, box), 128).render(pose(2.0, 1.0), CLOSED)
    assert abs(picture.depth[64, 64] - 1.6) < 0.01
    red = (picture.image[..., 0] > 150) & (picture.image[..., 1] < 40)
    radius = 0.4 / np.sqrt(2.0**2 - 0.4**2) / Camera().half * 64  # of its outline, in pixels
    assert abs(red.sum() / (np.pi * radius**2) - 1) < 0.03
    column = int((0.5 + (1.35 - 2.0) / 1.5 / Camera().half / 2) * 128)
    assert abs(picture.depth[80, column] - 1.5) < 0.01
    assert picture.image[80, column, 1] > 2 * picture.image[80, column, 0]


def test_the_nearer_of_two_hides_the_farther():
    near, far = Piece(), Piece()
    near.box((1.8, 1.3, 2.0), (2.2, 1.7, 2.1), plain(GREEN))
    far.ball((2.0, 1.5, 3.0), 0.5, plain(RED, glow=1.0))
    for pieces in ((near, far), (far, near)):
        image = Renderer(house_of(*pieces), 64).render(pose(2.0, 0.5), CLOSED).image
        assert image[32, 32, 1] > 2 * image[32, 32, 0]
        assert (image[..., 0] > 150).any()


def test_a_door_hides_the_next_room_until_it_opens():
    renderer, camera = Renderer(house_of(), 64), pose(1.0, 2.0, np.pi / 2)
    closed, opened = (renderer.render(camera, doors) for doors in (CLOSED, OPEN))
    assert closed.rooms == (0,) and set(opened.rooms) == {0, 1}
    row = int((0.5 - (1.2 - 1.5) / 3.08 / Camera().half / 2) * 64)
    assert abs(closed.depth[row, 32] - (3 + WALL / 2)) < 0.04
    assert abs(opened.depth[row, 32] - (7 + WALL)) < 0.01
    assert (closed.image[row, 30:34, 1] > 2 * closed.image[row, 30:34, 0]).all()  # the leaf is green
    top = int((0.5 - (DOOR_HEIGHT + 0.2 - 1.5) / 3 / Camera().half / 2) * 64)
    assert abs(opened.depth[top, 32] - 3) < 0.06


def test_an_opening_without_a_leaf_is_always_open():
    renderer = Renderer(house_of(has_leaf=False), 64)
    assert set(renderer.render(pose(1.0, 2.0, np.pi / 2), CLOSED).rooms) == {0, 1}
    assert renderer.render(pose(1.0, 2.0, -np.pi / 2), CLOSED).rooms == (0,)


def test_rendering_is_deterministic_and_the_renderer_keeps_nothing_of_other_frames():
    house = make_house(5)
    doors = np.tile([0.4, 1.0], (len(house.plan.doors), 1))
    places = [pose(*room.centre + 0.3, yaw) for room, yaw in zip(house.plan.rooms, (0.1, 2.0, 4.0, 5.0), strict=False)]
    renderer = Renderer(house, 48)
    together = [renderer.render(place, doors).image for place in places]
    for place, image in zip(places, together, strict=True):
        assert np.array_equal(Renderer(make_house(5), 48).render(place, doors).image, image)


def test_nothing_is_left_open():
    """Every ray of every view hits something, in whatever house."""
    for seed in range(4):
        house = make_house(seed)
        renderer = Renderer(house, 32)
        for number, room in enumerate(house.plan.rooms):
            doors = np.tile([number % 3 / 2, 1.0], (len(house.plan.doors), 1))
            for yaw in np.arange(0, 6.2, 1.1):
                depth = renderer.render(pose(*room.centre, yaw), doors).depth
                assert np.isfinite(depth).all() and depth.max() < 25


def test_edges_of_four_rays_are_smoother():
    house = make_house(2)
    doors, camera = np.tile([0.0, 1.0], (len(house.plan.doors), 1)), pose(*house.plan.rooms[0].centre, 0.4)
    fine, coarse, smooth = (
        Renderer(house, size, samples=samples).render(camera, doors).image.astype(float)
        for size, samples in ((192, 1), (48, 1), (48, 2))
    )
    target = fine.reshape(48, 4, 48, 4, 3).mean((1, 3))
    assert np.abs(smooth - target).mean() < 0.9 * np.abs(coarse - target).mean()


def test_far_textures_are_averaged_and_near_ones_sharp():
    """A checker far below the size of a pixel is grey; one of many pixels is black and white."""
    for metres, shades in ((0.02, (0.3, 0.7)), (8.0, (0.0, 0.2))):
        checker = Material("checker", (np.ones(3), np.zeros(3), np.zeros(3)), metres, glow=1.0)
        wall = Piece()
        wall.box((0, 0, 3.9), (4, HIGH, 3.95), checker)
        image = Renderer(house_of(wall), 64).render(pose(2.0, 0.5), CLOSED).image[20:44, 20:44] / 255
        low, high = shades
        if metres < 1:
            assert image.min() > low and image.max() < high
        else:
            assert image.min() < high and image.max() > 0.75


def test_textures_have_no_seam():
    tiles = library()
    for name in ("planks", "tiles", "brick", "ornament", "plaster", "wood", "fabric", "stripes"):
        start = tiles.offsets[tiles.names[name] * 8]
        tile = tiles.pairs[start : start + TEXELS**2].view(np.uint8).reshape(TEXELS, TEXELS, 8)[..., :3].astype(float)
        inside = np.abs(np.diff(tile, axis=0)).mean((1, 2)).max()
        assert np.abs(tile[0] - tile[-1]).mean() <= 1.5 * inside


def test_balls_are_lit_from_their_lamp():
    piece = Piece()
    piece.balls.append(Ball(np.array([2.0, 1.2, 3.0]), 0.5, plain(GREY)))
    piece.boxes.append((np.array([1.5, 0.7, 2.5]), np.array([2.5, 1.7, 3.5])))
    image = Renderer(house_of(piece), 64).render(pose(2.0, 1.0), CLOSED).image
    rows = [int((0.5 - (height - 1.5) / 1.6 / Camera().half / 2) * 64) for height in (1.55, 0.85)]
    assert image[rows[0], 32, 0] > 1.15 * image[rows[1], 32, 0]


@pytest.mark.parametrize(
    ("size", "samples", "message"), [(20, 1, "size: expected"), (32, 3, "samples: expected 1 or 2")]
)
def test_bad_settings(size, samples, message):
    with pytest.raises(ValueError, match=message):
        Renderer(house_of(), size, samples=samples)
