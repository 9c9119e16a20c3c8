"""docs/versions.md is what tools/versions.py wrote, and nothing else is promised."""

import versions
from environment import ROOT


def test_the_releases_of_torch_are_those_that_were_tested() -> None:
    """README.md, pyproject.toml and requirements-dev.txt say of torch and numpy what docs/versions.md has rows of."""
    rows = [row.split("|")[1:-1] for row in versions.rows().values()]
    tested = [row[0].split("+")[0].strip() for row in rows if int(row[6]) == 0 and int(row[3]) > 1000]
    assert tested == list(versions.VERSIONS)
    minors = [version.rsplit(".", 1)[0] for version in tested]
    said = f"tested](docs/versions.md) on {', '.join(minors[:-1])} and {minors[-1]};"
    assert said in (ROOT / "README.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"torch>={minors[0]}", "numpy>={rows[0][1].strip().rsplit(".", 1)[0]}"' in project
    assert f"torch=={tested[2]}" in (ROOT / "requirements-dev.txt").read_text()
    assert versions.PAGE.read_text() == versions.page(versions.rows())
