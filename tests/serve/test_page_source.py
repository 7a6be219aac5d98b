"""What is sent of the page's source: without comments, and still the same program."""

import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from nodejs import NODE, needs_node
from rollcast.serve.page_files import as_sent, read_page_files
from rollcast.serve.page_source import css_without_comments, javascript_without_comments

FOLDER = Path(str(files("rollcast.serve") / "page"))
OWN = sorted(path for path in FOLDER.rglob("*.js") if path.parent.name != "vendor")
TYPESCRIPT = Path(__file__).parent.parent / "page" / "node_modules" / "typescript"

LOADED = [
    "index.html",
    "style.css",
    "icon.svg",
    "main.js",
    "vendor/preact_htm.js",
]

# Prints for each pair of files whether both have the same tokens, each with whether it begins a line.
SAME_TOKENS = """
import {createRequire} from "node:module";
import {readFileSync} from "node:fs";
const ts = createRequire(process.argv[1])("typescript");
const tokens = (path) => {
  const found = [];
  const file = ts.createSourceFile("x.js", readFileSync(path, "utf8"), ts.ScriptTarget.ESNext, true, ts.ScriptKind.JS);
  if (file.parseDiagnostics.length) throw new Error(`${path}: ${file.parseDiagnostics[0].messageText}`);
  const visit = (node) => {
    if (node.kind === ts.SyntaxKind.EndOfFileToken) return;
    if (node.kind >= ts.SyntaxKind.FirstJSDocNode && node.kind <= ts.SyntaxKind.LastJSDocNode) return;
    const children = node.getChildren(file);
    const line = file.getLineAndCharacterOfPosition(node.getStart(file)).line;
    found.push(children.length ? [node.kind] : [node.kind, node.getText(file), line]);
    children.forEach(visit);
  };
  visit(file);
  return JSON.stringify(found);
};
const pairs = JSON.parse(process.argv[2]);
console.log(JSON.stringify(pairs.map(([one, other]) => tokens(one) === tokens(other))));
"""

CASES = [
    ("a; // b\nc;", "a;\nc;\n"),
    ("/* a\nb */\nc;", "\n\nc;\n"),
    ("a /* b */ c", "a c\n"),
    ("a/* b */c", "a c\n"),
    ("return /* x\n */ 1", "return\n1\n"),  # the end of a line within a comment ends the statement
    ("x = '// a'; y = \"/* b */\";", "x = '// a'; y = \"/* b */\";\n"),
    (r"x = 'it\'s // a'; // b", "x = 'it\\'s // a';\n"),
    ("`// a ${b /* c */ + `/* ${d} */`} // e`; // f", "`// a ${b + `/* ${d} */`} // e`;\n"),
    ("`${ {a: 1}.a } // b` // c", "`${ {a: 1}.a } // b`\n"),
    ("x = `a\n  // b\n  c`;", "x = `a\n  // b\n  c`;\n"),
    ("x = /[/*]//* a */", "x = /[/*]/\n"),
    ("x = /'/; // it's", "x = /'/;\n"),
    ("x = a / b; // '", "x = a / b;\n"),
    ("x = f(a) / b / c; // '", "x = f(a) / b / c;\n"),
    ("x = a[0] / 2 // '\n/ b", "x = a[0] / 2\n/ b\n"),
    ("if (a) /'/.test(b); // c", "if (a) /'/.test(b);\n"),
    ('return /"/ // b', 'return /"/\n'),
    ("x = y.return / 2; // '", "x = y.return / 2;\n"),
    ("x++ / 2 // '", "x++ / 2\n"),
    ("x = {} / 2 // '", "x = {} / 2\n"),
    ("function f() {}\n/'/.test(a) // b", "function f() {}\n/'/.test(a)\n"),
    ("a => {}\n/'/.test(a) // b", "a => {}\n/'/.test(a)\n"),
    ("x = a?.b / 2 // '", "x = a?.b / 2\n"),
    ("  if (a) {\n    b;\n  }\n", "if (a) {\nb;\n}\n"),
    ("a // b\r\nc\r`d\r\n`", "a\nc\n`d\n`\n"),
    ("// a", ""),
    ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("source", "sent"), CASES)
def test_comments_and_indentation_go_and_the_rest_stays(source, sent):
    """Also in strings, templates and regular expressions; ends of lines stay, since they can end statements."""
    assert javascript_without_comments(source) == sent


@pytest.mark.parametrize(
    ("source", "what"),
    [("a;\nb = `c", "the template at line 2, column 5"), ("a /* b", "the comment at line 1, column 3"),
     ("x = 'a\n'", "the string at line 1, column 5"), ("x = /a\n/", "the regular expression at line 1, column 5")],
)  # fmt: skip
def test_what_has_no_end_is_told(source, what):
    """It is no program, so it is not sent as one."""
    with pytest.raises(ValueError, match=f"{what} has no end"):
        javascript_without_comments(source)


def test_a_style_sheet_loses_its_comments():
    """Strings and URLs stay."""
    source = '/* a */\nb {\n  content: "/* c */"; /* d */\n  mask: url(x/y.svg);\n}\n'
    assert css_without_comments(source) == '\nb {\ncontent: "/* c */";\nmask: url(x/y.svg);\n}\n'


@needs_node
@pytest.mark.parametrize("path", OWN, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_module_is_a_program_as_it_is_sent(path, tmp_path):
    """Node reads it, every line is where it was, and no comment is left."""
    sent = tmp_path / "sent.mjs"
    text = javascript_without_comments(path.read_text("utf-8"))
    sent.write_text(text, "utf-8")
    done = subprocess.run([NODE, "--check", str(sent)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert javascript_without_comments(text) == text
    assert not re.search(r"^\s*(//|/\*)", text, re.MULTILINE)


@needs_node
@pytest.mark.skipif(not TYPESCRIPT.exists(), reason="needs TypeScript, which `make check-page` installs")
def test_every_module_has_the_same_syntax_tree_as_it_is_sent(tmp_path):
    """TypeScript finds the same nodes, tokens and lines; a control finds that a changed program differs."""
    pairs = []
    for number, path in enumerate(OWN):
        sent = tmp_path / f"{number}.js"
        sent.write_text(javascript_without_comments(path.read_text("utf-8")), "utf-8")
        pairs.append((str(path), str(sent)))
    control = tmp_path / "control.js"
    control.write_text(OWN[0].read_text("utf-8") + "\n0;", "utf-8")
    pairs.append((str(OWN[0]), str(control)))
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", SAME_TOKENS, str(TYPESCRIPT / "package.json"), json.dumps(pairs)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True] * len(OWN) + [False]


def test_what_is_not_ours_is_sent_as_it_is():
    """Vendored files and their licences."""
    sources = {"vendor/a.js": b"/* (c) */ a", "vendor/LICENSE.a.txt": b"MIT", "b.svg": b"<!-- b --><svg/>"}
    assert as_sent(sources) == sources
    licences = [name for name in read_page_files().names if "LICENSE" in name]
    assert licences
    for name in licences:
        assert read_page_files().at(f"/{name}").data == (FOLDER / name).read_bytes()


def test_the_page_weighs_at_most_100_kb_compressed():
    """All that a browser loads for it: the document, the style sheet, the icon and the scripts (test_browser.py holds that it is all)."""
    page = read_page_files()
    loaded = [page.at(f"/{name}") for name in LOADED]
    assert sum(len(file.zstd or file.compressed or file.data) for file in loaded) <= 100_000
    assert (
        sum(len(file.compressed or file.data) for file in loaded) <= 102_000
    )  # without zstd; it is an extra
