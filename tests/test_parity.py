"""docs/parity says what other libraries have and the call that does it here: each row holds."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import re
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import trionfq
import trionfq.backends
import trionfq.rules
import trionfq.schema
import trionfq.testing

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "parity"
REFERENCE = ROOT.parent / "shared" / "reference" / "go-nfqueue-api.txt"
HEADERS = Path("/usr/include/libnetfilter_queue")
PEERS = ROOT / "benchmarks" / "build" / "venv" / "lib"  # made by `make bench`


def load_tables() -> Any:
    """docs/parity/tables.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("parity_tables", FOLDER / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tables = load_tables()
PAGES = tables.pages()
NAMES = tomllib.loads((FOLDER / "names.toml").read_text(encoding="utf-8"))
ROWS = [pytest.param(row, id=f"{page.name}-{row.theirs[0]}") for page in PAGES for row in page.rows]
each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


# --- a call, resolved -----------------------------------------------------------------------------


class WrongCallError(Exception):
    """A call that cannot be made."""


class Thing(NamedTuple):
    """What a name stands for.

    Attributes:
      of: a class, a function, a module, or None for something of which nothing is known.
      instance: it is an object of that class, or a function bound to one.
    """

    of: Any
    instance: bool = False


ANYTHING = Thing(None)
# What the objects are called in the tables; other lower-case names are values of the reader's.
OBJECTS = {
    "packet": trionfq.Packet,
    "queue": trionfq.Queue,
    "backend": trionfq.NetlinkBackend,
}
VALUES = {"number", "data", "handler", "error_handler", "packet_id", "fd", "pid", "datagram"}
CLASSES = {
    name: thing
    for module in (trionfq.backends, trionfq.rules, trionfq.schema, trionfq)
    for name, thing in vars(module).items()
    if inspect.isclass(thing)
}


def resolve(call: str) -> set[str]:
    """Check a call as the tables show it, and give the names that it uses.

    Raises:
      WrongCallError: there is nothing of that name, or it does not take these arguments.
    """
    tree = ast.parse(f"async def shown():\n    {call}")
    visitor = Resolver()
    visitor.visit(tree)
    return visitor.used


class Resolver(ast.NodeVisitor):
    """Looks up every name, attribute and keyword of a piece of code."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def visit(self, node: ast.AST) -> Thing:
        method = getattr(self, f"visit_{type(node).__name__}", None)
        if method is not None:
            thing: Thing = method(node)
            return thing
        for child in ast.iter_child_nodes(node):
            self.visit(child)
        return ANYTHING

    def visit_Name(self, node: ast.Name) -> Thing:
        if node.id in OBJECTS:
            return Thing(OBJECTS[node.id], instance=True)
        if node.id in VALUES or hasattr(builtins, node.id):
            return ANYTHING
        if node.id == "trionfq":
            return Thing(trionfq)
        self.used.add(node.id)
        return member(Thing(trionfq), node.id)

    def visit_Attribute(self, node: ast.Attribute) -> Thing:
        self.used.add(node.attr)
        return member(self.visit(node.value), node.attr)

    def visit_Call(self, node: ast.Call) -> Thing:
        function = self.visit(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)
        if function.of is None:
            return ANYTHING
        self.used |= {keyword.arg for keyword in node.keywords if keyword.arg}
        check_arguments(function, node)
        if inspect.isclass(function.of):
            return Thing(function.of, instance=True)
        return returned(function.of)


def member(thing: Thing, name: str) -> Thing:
    """An attribute of something."""
    if thing.of is None:
        return ANYTHING
    try:
        found = inspect.getattr_static(thing.of, name)
    except AttributeError:
        if thing.instance and name in getattr(thing.of, "__dataclass_fields__", {}):
            return ANYTHING
        raise WrongCallError(f"{thing.of.__name__} has no {name}") from None
    if isinstance(found, property):
        return returned(found.fget)
    if isinstance(found, classmethod | staticmethod):
        return Thing(getattr(thing.of, name))
    if inspect.isfunction(found):
        return Thing(found, instance=thing.instance)
    if inspect.isclass(found) or isinstance(found, ModuleType):
        return Thing(found)
    return ANYTHING


def returned(function: Any) -> Thing:
    """What a function gives, by its annotation: an object of the class that it names first."""
    annotation = str(function.__annotations__.get("return", ""))
    name = re.split(r"[\[ |]", annotation, maxsplit=1)[0]
    return Thing(CLASSES[name], instance=True) if name in CLASSES else ANYTHING


def check_arguments(function: Thing, node: ast.Call) -> None:
    """Check that a function takes the arguments of a call; `...` stands for those not shown."""
    signature = inspect.signature(function.of)
    shown = [a for a in node.args if not (isinstance(a, ast.Constant) and a.value is ...)]
    bind = signature.bind if len(shown) == len(node.args) else signature.bind_partial
    keywords = {keyword.arg for keyword in node.keywords if keyword.arg}
    for parameter in signature.parameters.values():
        changes = re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation))
        if parameter.kind is parameter.VAR_KEYWORD and changes:
            known = set(getattr(trionfq, changes[1]).__annotations__)
            if unknown := keywords - known - signature.parameters.keys():
                raise WrongCallError(
                    f"{function.of.__name__} takes no {', '.join(sorted(unknown))}"
                )
    itself = [None] if function.instance else []
    try:
        bind(*itself, *shown, **dict.fromkeys(keywords))
    except TypeError as error:
        raise WrongCallError(f"{function.of.__name__}: {error}") from None


@pytest.mark.parametrize(
    "call",
    [
        "packet.acept()",
        "packet.accept(marks=1)",
        "packet.accept(1)",
        "packet.drop(mark=1)",
        "packet.ip.sorce",
        "queue.statistics().overrun",
        "queue.set_verdict_batch(packet_id, Verdict.ACCEPT, payload=data)",
        "queue.config.flag",
        "trionfq.open_queue()",
        "trionfq.open_queue(number, max_length=3)",
        "trionfq.open_queues(number)",
        "NetlinkOptions(enobufs=True)",
        "Namespace.from_nothing(fd)",
        "Verdict.STEAL",
        "Pocket",
        "stranger.accept()",
    ],
)
def test_a_call_that_cannot_be_made_is_noticed(call: str) -> None:
    with pytest.raises(WrongCallError):
        resolve(call)


def test_names_and_keywords_of_a_call_are_found() -> None:
    call = "async with trionfq.open_queue(number, flags=QueueFlags.GSO) as queue: queue.config"
    assert resolve(call) == {"open_queue", "flags", "QueueFlags", "GSO", "config"}
    assert resolve("packet.ip.with_data(data)") == {"ip", "with_data"}


# --- the rows -------------------------------------------------------------------------------------


@cache
def functions(path: Path) -> frozenset[str]:
    """Names of a file's functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@cache
def words(path: Path) -> frozenset[str]:
    """Every word of a file."""
    return frozenset(re.findall(r"\w+", path.read_text(encoding="utf-8")))


def faults(row: Any) -> list[str]:
    """What is wrong with a row."""
    if row.left_out:
        found = [f"left out and yet {call}" for call in row.calls]
        # A reason is a sentence.
        return found if len(row.left_out.split()) > 5 else [*found, f"reason {row.left_out!r}"]
    found = [] if row.calls and row.tests else ["neither shown nor left out"]
    used: set[str] = set()
    for call in row.calls:
        try:
            used |= resolve(call)
        except WrongCallError as error:
            found.append(f"{call}: {error}")
    return found + [f"no test of its uses {name}" for name in sorted(used - words_of_tests(row))]


def words_of_tests(row: Any) -> set[str]:
    files = {ROOT / test.split("::")[0] for test in row.tests}
    return set().union(*(words(file) for file in files if file.exists()))


def missing_tests(row: Any) -> list[str]:
    """Tests of a row that are none, or stand there twice."""
    found = [test for test, count in Counter(row.tests).items() if count > 1]
    for test in row.tests:
        path, name = test.split("::")
        if not name.startswith("test_") or name not in functions(ROOT / path):
            found.append(test)
    return found


@each_page
def test_every_call_can_be_made_and_is_used_by_a_test_of_its_row(page: Any) -> None:
    assert {row.theirs: found for row in page.rows if (found := faults(row))} == {}


@each_page
def test_every_test_exists(page: Any) -> None:
    assert {row.theirs: found for row in page.rows if (found := missing_tests(row))} == {}


SHOWN = ("tests/kernel/test_attributes.py::test_mark_is_the_sockets",)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (tables.Row(("x",), ("packet.mark",), SHOWN), []),
        (tables.Row(("x",), left_out="it is of no use to anybody here"), []),
        (tables.Row(("x",), ("packet.mark",)), ["neither shown", "uses mark"]),
        (tables.Row(("x",), (), SHOWN), ["neither shown"]),
        (tables.Row(("x",), ("packet.marc",), SHOWN), ["Packet has no marc"]),
        (tables.Row(("x",), ("packet.to_scapy()",), SHOWN), ["uses to_scapy"]),
        (tables.Row(("x",), ("packet.mark",), left_out="it is of no use to anybody"), ["and yet"]),
        (tables.Row(("x",), left_out="no"), ["reason 'no'"]),
    ],
)
def test_a_wrong_row_is_noticed(row: Any, found: list[str]) -> None:
    told = faults(row)
    assert len(told) == len(found)
    assert all(part in text for part, text in zip(found, told, strict=True))


def test_a_test_that_is_not_there_is_noticed() -> None:
    gone = "tests/kernel/test_attributes.py::test_mark_is_somebody_elses"
    assert missing_tests(tables.Row(("x",), ("packet.mark",), (*SHOWN, gone, gone))) == [gone] * 3
    assert missing_tests(tables.Row(("x",), ("packet.mark",), SHOWN)) == []


@each_page
def test_every_name_of_the_peer_has_one_row(page: Any) -> None:
    peer = NAMES[page.name]
    expected = " ".join(peer.get(kind, "") for kind in ("names", "newer", "borrowed")).split()
    rows = Counter(name for row in page.rows for name in row.theirs)
    assert rows == Counter(expected)
    assert peer["version"] in page.about


@each_page
def test_the_page_is_made_from_the_table(page: Any) -> None:
    written = (FOLDER / f"{page.name}.md").read_text(encoding="utf-8")
    assert written == tables.render(page), "run: python docs/parity/tables.py"


def test_every_page_is_reached() -> None:
    overview = (FOLDER.parent / "parity.md").read_text(encoding="utf-8")
    assert {page.name for page in PAGES} == NAMES.keys()
    assert {path.stem for path in FOLDER.glob("*.md")} == NAMES.keys()
    for page in PAGES:
        assert f"\nparity/{page.name}\n" in overview


# --- the lists of names, beside what they were taken from -----------------------------------------


def names(peer: str) -> set[str]:
    return set(NAMES[peer]["names"].split())


def test_go_names_are_those_of_its_documentation() -> None:
    if not REFERENCE.exists():
        pytest.skip("go-nfqueue's package documentation is not here")
    text = REFERENCE.read_text(encoding="utf-8")
    assert go_names(text) <= names("go-nfqueue")
    # Newer than that text.
    assert names("go-nfqueue") - go_names(text) == {
        "Nfqueue.SetVerdictModPacketWithLabel",
        "Nfqueue.SetVerdictWithLabel",
        "Nfqueue.SetVerdictWithOption",
        "VerdictOption",
        "WithAlteredPacket",
        "WithConnMark",
        "WithLabel",
        "WithMark",
    }


def go_names(text: str) -> set[str]:
    """Public names in the text of a Go package's documentation."""
    found = set(re.findall(r"\b(?:Nf[QDASR][A-Z]?\w+|Err[A-Z]\w+)\b", text)) - {"Nfqueue"}
    found |= {f"Nfqueue.{name}" for name in re.findall(r"func \(nfqueue \*Nfqueue\) (\w+)", text)}
    found |= set(re.findall(r"\btype (\w+) ", text))
    found |= set(re.findall(r"\bnfqueue\.([A-Z]\w+)\(&config\)", text))
    for struct in ("Attribute", "Config", "Nfqueue"):
        body = re.search(rf"type {struct} struct {{(.*?)}}", text, re.DOTALL)
        assert body is not None
        kind = r"(?:\*|\[\]|u?int\d*\b|time\.|Logger\b|netlink\.)"
        found |= {f"{struct}.{name}" for name in re.findall(rf"\b([A-Z]\w+) {kind}", body[1])}
    found |= {f"Logger.{name}" for name in re.findall(r"(\w+)\(format string", text)}
    return {name for name in found if not name.startswith("NfQueue")}


def test_c_names_are_those_of_its_headers() -> None:
    if not HEADERS.is_dir():
        pytest.skip(f"{HEADERS} is not here (Debian package libnetfilter-queue-dev)")
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(HEADERS.glob("*.h")))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = set(re.findall(r"\b((?:nfq|pktb)_\w+)\s*\(", text))
    found |= set(re.findall(r"\bextern int (nfq_\w+);", text))
    found |= set(re.findall(r"\b(NFQ_XML_\w+)\b", text))
    newer = set(NAMES["libnetfilter_queue"]["newer"].split())
    assert found - newer == names("libnetfilter_queue")


def peer_source(path: str) -> ast.Module:
    """A Python peer's source, where the benchmarks have installed it."""
    [*found] = PEERS.glob(f"python3*/site-packages/{path}")
    if not found:
        pytest.skip(f"{path} is not here: make bench installs it")
    return ast.parse(found[0].read_text(encoding="utf-8"))


def python_names(module: ast.Module, constructors: set[str]) -> set[str]:
    """Public names of a module: constants, classes, and what their objects have."""
    found: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {name for name in targets(node) if name.isupper()}
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found.add(node.name)
            for part in node.body:
                if isinstance(part, ast.AnnAssign):
                    found |= {f"{node.name}.{name}" for name in targets(part)}
                elif isinstance(part, ast.FunctionDef):
                    found |= method_names(node.name, part, node.name in constructors)
    return found


def targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    every = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in every if isinstance(target, ast.Name)}


def method_names(owner: str, method: ast.FunctionDef, constructor: bool) -> set[str]:
    if method.name in ("__init__", "__new__"):
        arguments = (*method.args.args[1:], *method.args.kwonlyargs) if constructor else ()
        return {f"{owner}({argument.arg}=)" for argument in arguments}
    if method.name.startswith("_") and method.name != "__iter__":
        return set()
    return {f"{owner}.{method.name}"}


def test_netfilterqueue_names_are_those_of_its_stub() -> None:
    found = python_names(peer_source("netfilterqueue/_impl.pyi"), {"NetfilterQueue"})
    assert found == names("netfilterqueue")


def test_fnfqueue_names_are_those_of_its_source() -> None:
    found = python_names(peer_source("fnfqueue/__init__.py"), {"Connection"})
    # An attribute that its constructor sets.
    assert found | {"Connection.queue"} == names("fnfqueue")
