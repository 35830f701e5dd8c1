"""What killed processes leave of small files: only that of the files that are written goes."""

from pathlib import Path

from batchcap.core.atomic import TEMPORARY_SUFFIX, Leftovers, _label


def test_of_names_that_begin_alike_only_the_own_one_goes(tmp_path: Path) -> None:
    names = [f"{'a' * 60}-{number}.txt" for number in range(2)]
    left = [tmp_path / f".{_label(name)}.0123abcd{TEMPORARY_SUFFIX}" for name in names]
    for path in left:
        path.touch()
    Leftovers().remove([tmp_path / names[0]])
    assert not left[0].exists()
    assert left[1].exists(), "another job may be about to write it"
