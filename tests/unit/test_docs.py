"""What the pages say of conventions, held against the conventions themselves."""

import dataclasses
import re
import typing
from pathlib import Path

import make_gallery
import make_presets_table
import make_targets_page
import make_trips_table
import pytest

import nirdeploy as nd
from nirdeploy.reference.presets import PRESETS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "conventions.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    return make_presets_table


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_table_of_presets_is_what_the_script_makes_of_them(script):
    between = PAGE.split(script.BEGIN)[1].split(script.END)[0]
    assert between == script.table(), "run python docs/make_presets_table.py"


def test_table_has_a_row_for_every_preset_with_all_it_changes(script):
    header, _, *rows = script.table().splitlines()
    assert [row.split(" | ")[0] for row in rows] == [f"| `{name}`" for name in PRESETS]
    assert {row.replace("\\|", "").count("|") for row in (header, *rows)} == {5}
    for row, preset in zip(rows, PRESETS.values(), strict=True):
        fields = {k: v for k, v in preset.fields.items() if k != "overrides"}
        for values in (fields, *preset.fields.get("overrides", {}).values()):
            assert all(f"`{field}={value!r}`" in row for field, value in values.items())
        assert all(kind in row for kind in preset.fields.get("overrides", {}))


def test_script_rewrites_an_old_table_and_nothing_else(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{script.BEGIN}| old |\n{script.END}below\n", encoding="utf-8")
    script.main(page)
    assert page.read_text(encoding="utf-8") == f"above\n{script.BEGIN}{script.table()}{script.END}below\n"
    script.main(page)
    assert page.read_text(encoding="utf-8").count("`nir`") == 1


@pytest.mark.parametrize("text", ["", "{BEGIN}", "{END}", "{BEGIN}{END}{END}"])
def test_script_refuses_a_page_without_its_markers(script, text):
    with pytest.raises(ValueError, match="once each"):
        script.with_table(text.format(BEGIN=script.BEGIN, END=script.END))


def test_table_of_fields_names_every_field_and_value_the_default_first():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section("All fields"), re.MULTILINE)
    fields = {f.name: f for f in dataclasses.fields(nd.Convention) if f.name != "preset"}
    assert {name for name, *_ in rows} == set(fields)
    hints = typing.get_type_hints(nd.Convention)
    for name, values, _ in rows:
        known = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is typing.Literal else ()
        assert all(f"`{value}`" in values for value in known), name
        if known:
            assert values.startswith(f"`{fields[name].default}`"), name


def test_every_preset_that_is_a_library_has_a_recipe():
    recipes = section("Library by library")
    for name in set(PRESETS) - {"nir", "exact"}:
        assert f'nd.convention("{name}"' in recipes
    assert set(re.findall(r'nd\.convention\("(\w+)"', PAGE)) <= set(PRESETS)


def test_fields_that_recipes_add_are_taken_by_a_convention():
    fields = re.findall(r'`((?:\w+=(?:"[\w-]+"|-?[\d.]+)(?:, )?)+)`', section("Library by library"))
    known = {f.name for f in dataclasses.fields(nd.Convention)}
    added = [text for text in fields if set(re.findall(r"(\w+)=", text)) <= known - {"dt"}]
    assert len(added) >= 8
    for text in added:
        values = {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[\w-]+"|-?[\d.]+)', text)}
        if "v_min" in values:
            values["v_min"] = float(values["v_min"])
        assert nd.convention("nir", **values).to_dict().items() >= values.items()


def test_tables_of_what_survives_are_what_the_script_makes_of_them():
    page = (DOCS / "frameworks.md").read_text(encoding="utf-8")
    assert make_trips_table.with_tables(page) == page, "run python docs/make_trips_table.py"
    for library in make_trips_table.LIBRARIES:
        assert make_trips_table.table(library).count("\n") > 10


def test_tables_of_targets_are_what_they_answer():
    page = (DOCS / "targets.md").read_text(encoding="utf-8")
    assert make_targets_page.with_tables(page) == page, "run python docs/make_targets_page.py"
    assert all(f"`{name}`" in page for name in nd.targets())
    with pytest.raises(ValueError, match="once each"):
        make_targets_page.with_tables("no markers")


def test_gallery_has_every_example_its_text_and_its_picture():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    scripts = {path.stem for path in (DOCS.parent / "examples").glob("*.py")}
    assert set(make_gallery.SHOWN) == scripts | {"demo"}
    assert set(make_gallery.SHOWN) > make_gallery.FLOATS
    for name, pictured in make_gallery.SHOWN.items():
        text = make_gallery.recorded(name)
        assert make_gallery.masked(text) == text, "seconds that are not masked"
        again = make_gallery.with_section(page, name, text)
        assert again == page, f"run python docs/make_gallery.py {name}"
        assert (f"](gallery/{name}.png)" in page) == bool(pictured)
    pictures = list((DOCS / "gallery").iterdir())
    assert {path.stem for path in pictures} == {name for name, pictured in make_gallery.SHOWN.items() if pictured}
    assert sum(path.stat().st_size for path in pictures) < 300_000


def test_seconds_are_masked_and_nothing_else():
    table = "┃ seconds ┃\n│ 0.972 │ 0.3     │\n"
    assert make_gallery.masked(f"dt 0.001 s\n{table}47 s; read\n") == (
        "dt 0.001 s\n┃ seconds ┃\n│ 0.972 │ ...     │\n... s; read\n"
    )
    assert make_gallery.masked("│ 0.972 │ 0.3     │\n") == "│ 0.972 │ 0.3     │\n"


def test_gallery_tells_what_an_example_prints_otherwise():
    exact = make_gallery.recorded("own_chip_dump")
    assert make_gallery.differences("own_chip_dump", exact) == []
    assert make_gallery.differences("own_chip_dump", exact.replace("differs: 8", "differs: 7")) == [
        "- neurons whose v differs: 8",
        "+ neurons whose v differs: 7",
    ]
    assert make_gallery.differences("own_chip_dump", exact + "more\n") == ["- ", "+ more"]
    trained = make_gallery.recorded("norse_digits")
    assert make_gallery.differences("norse_digits", trained.replace("0.9", "0.8")) == []
    assert make_gallery.differences("norse_digits", trained.replace("loihi2: ", "loihi2 = ")) != []
    assert make_gallery.differences("norse_digits", trained.split("\n", 1)[1]) != []
