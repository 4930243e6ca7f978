"""Benchmarks run and print what they say; their times are no test's business."""

from tests import runs


def test_population_prints_a_row_for_each_number_of_students():
    printed = runs.succeed("benchmarks.population", runs.SMOKE, "--students=1,3", "--rounds=2", "--loss=0.5*kl+0.5*tv")
    assert "a plain jax.grad" in printed
    rows = [line.replace("│", " ").split() for line in printed.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["1", "3"]
    for count, _, ratio, _, _, faster in (map(float, row) for row in rows):
        assert abs(count / ratio - faster) < 0.02 * faster + 0.02
