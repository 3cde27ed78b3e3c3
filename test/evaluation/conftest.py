"""A small drawn data set."""

import dot_data
import dots
import numpy as np
import pytest


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Three pictures in a zip file: two people, one person, nobody."""
    people = {
        "two.png": np.stack([dots.figure((150, 240), 260), dots.figure((470, 230), 300)]),
        "one.png": np.stack([dots.figure((320, 240), 300)]),
        "none.png": np.zeros((0, 17, 2)),
    }
    pictures = {name: (dots.draw_people((480, 640), xy), xy) for name, xy in people.items()}
    return dot_data.write_data_set(tmp_path_factory.mktemp("drawn"), pictures)
