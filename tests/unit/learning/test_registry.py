"""Registries: members by name, settings decoded late, members of other packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from msgspec import Meta

from fedge.errors import ConfigError
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.servers import SERVERS
from learning.codecs.registry import CODECS
from learning.phases.registry import PHASES
from learning.registry import Choice, Registry, Settings, choice_of


class RulerSettings(Settings, frozen=True, tag="ruler"):
    length: Annotated[int, Meta(ge=1, le=300)] = 30
    unit: str = "cm"
    step: Annotated[float, Meta(gt=0)] = 0.1


class Ruler:
    settings_type: ClassVar[type[Settings]] = RulerSettings

    def __init__(self, settings: RulerSettings, owner: str = "nobody") -> None:
        self.settings, self.owner = settings, owner


class HammerSettings(Settings, frozen=True, tag="hammer"):
    pass


class Hammer:
    settings_type: ClassVar[type[Settings]] = HammerSettings

    def __init__(self, settings: HammerSettings) -> None:
        self.settings = settings


@pytest.fixture
def tools() -> Registry[Any]:
    return Registry("tool", Ruler, Hammer)


def test_a_name_makes_a_member_with_default_settings(tools: Registry[Any]) -> None:
    made = tools.make("ruler")
    assert isinstance(made, Ruler)
    assert made.settings == RulerSettings()


def test_a_mapping_makes_a_member_with_its_settings(tools: Registry[Any]) -> None:
    made = tools.make({"name": "ruler", "length": 100})
    assert made.settings == RulerSettings(length=100)


def test_further_arguments_reach_the_constructor(tools: Registry[Any]) -> None:
    assert tools.make("ruler", "pi-1").owner == "pi-1"
    assert tools.make("ruler", owner="pi-2").owner == "pi-2"


def test_settings_that_are_decoded_already_pass_through(tools: Registry[Any]) -> None:
    settings = RulerSettings(length=7)
    assert tools.settings(settings) is settings
    assert tools.make(settings).settings is settings


def test_decoded_settings_of_another_kind_are_refused(tools: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match="unknown codec 'ruler'"):
        CODECS.make(RulerSettings())


def test_members_are_listed_in_their_order(tools: Registry[Any]) -> None:
    assert list(tools) == ["ruler", "hammer"]
    assert "ruler" in tools
    assert "saw" not in tools
    assert 5 not in tools
    assert tools["hammer"] is Hammer


def test_an_unknown_name_is_answered_with_the_closest_and_all_known(tools: Registry[Any]) -> None:
    message = r"^tool: unknown tool 'rular'; did you mean ruler\? known: ruler, hammer$"
    with pytest.raises(ConfigError, match=message):
        tools.settings("rular")
    with pytest.raises(ConfigError, match=r"^unknown tool 'x'; known: ruler, hammer$"):
        tools["x"]


def test_an_unknown_key_is_answered_with_the_closest_and_all_known(tools: Registry[Any]) -> None:
    keys = r"known keys: length, name, step, unit$"
    message = r"^plan\.tool\.lenght: unknown key; did you mean length\? " + keys
    with pytest.raises(ConfigError, match=message):
        tools.settings({"name": "ruler", "lenght": 3}, key="plan.tool")


def test_a_member_without_settings_knows_no_key(tools: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match=r"^tool\.weight: unknown key; known keys: name$"):
        tools.settings({"name": "hammer", "weight": 3})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"length": "long"}, r"length: expected a whole number, got "),
        ({"length": 1.5}, r"length: expected a whole number, got "),
        ({"unit": 3}, r"unit: expected text, got "),
        ({"length": 0}, r"length: expected a whole number >= 1, got "),
        ({"length": 301}, r"length: expected a whole number <= 300, got "),
        ({"step": 0}, r"step: expected a number > 0\.0, got "),
        ({"step": float("nan")}, r"step: expected a number > 0\.0, got "),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(
    tools: Registry[Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^tool\.{message}"):
        tools.settings({"name": "ruler", **given})


@pytest.mark.parametrize("given", [{}, {"length": 3}, {"name": 5}, {"name": None}])
def test_a_missing_name_is_named(tools: Registry[Any], given: dict[str, Any]) -> None:
    message = r"^round\.tool\.name: required key is missing; known: ruler, hammer$"
    with pytest.raises(ConfigError, match=message):
        tools.settings(given, key="round.tool")


# --- as they travel -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ruler", "ruler"),
        ({"name": "ruler"}, "ruler"),
        ({"name": "ruler", "length": 30}, "ruler"),  # the default
        ({"name": "ruler", "length": 9}, {"name": "ruler", "length": 9}),
        ("hammer", "hammer"),
    ],
)
def test_settings_travel_as_a_name_where_all_are_defaults(
    tools: Registry[Any], given: Choice, expected: Choice
) -> None:
    settings = tools.settings(given)
    assert choice_of(settings) == expected
    assert tools.settings(choice_of(settings)) == settings


@pytest.mark.parametrize(
    "registry", [AGGREGATORS, ALGORITHMS, CODECS, SERVERS], ids=lambda r: r.kind
)
def test_every_member_travels_by_its_name(registry: Registry[Any]) -> None:
    for name in registry:
        settings = registry.settings(name)
        assert settings.name == name
        assert choice_of(settings) == name


def test_a_choice_within_a_choice_travels() -> None:
    given: Choice = {"name": "fedprox", "mu": 0.5, "server": {"name": "fedadam", "tau": 0.01}}
    settings = ALGORITHMS.settings(given)
    assert choice_of(settings) == given
    assert ALGORITHMS.settings(choice_of(settings)) == settings


# --- members that are added -----------------------------------------------------------------------


def test_a_plug_ins_file_adds_a_member_with_a_decorator() -> None:
    tools: Registry[Any] = Registry("tool", Ruler)
    assert tools.add(Hammer) is Hammer
    assert list(tools) == ["ruler", "hammer"]


def test_a_file_that_is_loaded_again_replaces_its_member(tools: Registry[Any]) -> None:
    again = type("Hammer", (), {**vars(Hammer)})
    tools.add(again)
    assert tools["hammer"] is again
    assert list(tools) == ["ruler", "hammer"]


@pytest.mark.parametrize(
    ("qualname", "module"), [("Mallet", __name__), ("Hammer", "another.package")]
)
def test_two_members_of_one_name_are_refused(
    tools: Registry[Any], qualname: str, module: str
) -> None:
    names = {"__module__": module, "__qualname__": qualname}
    other = type(qualname, (), {**vars(Hammer), **names})
    with pytest.raises(ConfigError, match=rf"'hammer' is defined by .*Hammer and by .*{qualname}"):
        tools.add(other)
    assert tools["hammer"] is Hammer


PLUG_IN = """
from learning.registry import Settings

class SawSettings(Settings, frozen=True, tag="saw"):
    teeth: int = 20

class Saw:
    settings_type = SawSettings

    def __init__(self, settings):
        self.settings = settings
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, with a distribution whose entry points offer tools."""
    folder = tmp_path / "site"
    info = folder / "workshop-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workshop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedge.tools]\n"
        "saw = fedge_test_workshop:Saw\n"
        "drill = fedge_test_workshop:Drill\n"
        "plane = fedge_test_missing:Plane\n"
        "ruler = fedge_test_missing:Ruler\n"
    )
    (folder / "fedge_test_workshop.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("fedge_test_workshop", None)


@pytest.mark.usefixtures("installed")
def test_a_member_of_an_installed_package_is_found_by_its_name(tools: Registry[Any]) -> None:
    made = tools.make({"name": "saw", "teeth": 32})
    assert type(made).__module__ == "fedge_test_workshop"
    assert choice_of(made.settings) == {"name": "saw", "teeth": 32}
    assert "saw" in tools
    assert list(tools) == ["ruler", "hammer", "saw"]


@pytest.mark.usefixtures("installed")
def test_a_package_is_not_loaded_for_a_name_that_is_known(tools: Registry[Any]) -> None:
    assert tools["ruler"] is Ruler
    assert "fedge_test_workshop" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_entry_points_of_another_kind_are_not_looked_at() -> None:
    with pytest.raises(ConfigError, match="unknown codec 'saw'"):
        CODECS.make("saw")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "entry"),
    [("drill", "fedge_test_workshop:Drill"), ("plane", "fedge_test_missing:Plane")],
)
def test_a_package_that_cannot_be_loaded_is_named(
    tools: Registry[Any], name: str, entry: str
) -> None:
    with pytest.raises(ConfigError, match=f"^tool '{name}': entry point {entry} cannot be loaded"):
        tools[name]


@pytest.mark.usefixtures("installed")
def test_an_entry_point_under_another_name_than_its_settings_say_is_refused(
    installed: Path, tools: Registry[Any]
) -> None:
    points = installed / "workshop-1.0.dist-info" / "entry_points.txt"
    points.write_text("[fedge.tools]\nchainsaw = fedge_test_workshop:Saw\n")
    with pytest.raises(ConfigError, match=r"chainsaw.* is 'saw' by its settings' tag"):
        tools["chainsaw"]


@pytest.mark.usefixtures("installed")
def test_a_package_that_raises_while_it_is_loaded_is_named(
    installed: Path, tools: Registry[Any]
) -> None:
    (installed / "fedge_test_workshop.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="fedge_test_workshop:Saw cannot be loaded: division by"):
        tools["saw"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('so')\n", "Odd: so"),
    ],
)
def test_a_package_that_would_end_the_process_is_refused_in_one_line(
    installed: Path, tools: Registry[Any], source: str, why: str
) -> None:
    (installed / "fedge_test_workshop.py").write_text(source)
    with pytest.raises(ConfigError, match=f"fedge_test_workshop:Saw cannot be loaded: {why}$"):
        tools["saw"]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, TypeError])
def test_a_member_whose_constructor_raises_is_refused_in_one_line(
    tools: Registry[Any], error: type[BaseException]
) -> None:
    class Broken(Hammer):
        settings_type = type("S", (Settings,), {}, frozen=True, tag="broken")

        def __init__(self, settings: Any) -> None:
            raise error("so\nand so")

    tools.add(Broken)
    with pytest.raises(ConfigError, match=rf"^tool 'broken': {error.__name__}: so$"):
        tools.make("broken")


def test_settings_that_raise_are_refused_in_one_line(tools: Registry[Any]) -> None:
    class OddSettings(Settings, frozen=True, tag="odd"):
        def __post_init__(self) -> None:
            raise ZeroDivisionError("so")

    tools.add(type("Odd", (Hammer,), {"settings_type": OddSettings}))
    with pytest.raises(ConfigError, match=r"^tool 'odd': ZeroDivisionError: so$"):
        tools.make("odd")


def broken_text(points: Path) -> None:
    points.write_text("[fedge.tools]\nno equals sign\n")


def broken_bytes(points: Path) -> None:
    points.write_bytes(b"[fedge.tools]\ntongs = \xff\xfe:Tongs\n")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("broken", [broken_text, broken_bytes, Path.mkdir])
def test_entry_points_that_cannot_be_read_are_ignored_with_one_warning(
    installed: Path,
    tools: Registry[Any],
    broken: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    points = installed / "another-1.0.dist-info" / "entry_points.txt"
    points.parent.mkdir()
    broken(points)
    assert tools.names() == ["ruler", "hammer", "saw", "drill", "plane"]
    assert "saw" in tools
    assert "int8" in CODECS.names()
    (warning,) = caplog.messages
    assert warning.startswith(f"{points} is ignored: ")


@pytest.mark.usefixtures("installed")
def test_names_of_installed_packages_are_listed_without_loading_them(tools: Registry[Any]) -> None:
    assert tools.names() == ["ruler", "hammer", "saw", "drill", "plane"]
    assert list(tools) == ["ruler", "hammer"]
    assert "fedge_test_workshop" not in sys.modules
    with pytest.raises(ConfigError, match=r"known: ruler, hammer, saw, drill, plane$"):
        tools["tongs"]


@pytest.mark.parametrize(
    ("registry", "group"),
    [
        (ALGORITHMS, "fedge.algorithms"),
        (CODECS, "fedge.codecs"),
        (AGGREGATORS, "fedge.aggregators"),
        (PHASES, "fedge.phases"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_each_kind_has_its_group_of_entry_points(registry: Registry[Any], group: str) -> None:
    assert registry.group == group


def test_without_such_packages_no_package_is_looked_into() -> None:
    code = (
        "import sys\n"
        "from learning.codecs.registry import CODECS\n"
        "assert 'int8' in CODECS.names() and 'int7' not in CODECS\n"
        "assert 'importlib.metadata' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
