"""The page's modules joined to one: what it does, and what is refused."""

import subprocess

import pytest

from nodejs import NODE, needs_node
from rollcast.serve.page_bundle import joined_modules
from rollcast.serve.page_files import read_page_files

VENDORED = {"vendor/v.js": "let n = 0;\nexport const next = () => ++n;\nexport default next;\n"}


def joined(sources):
    return joined_modules("main.js", sources, lambda name: name.startswith("vendor/"))


def said(sources, folder):
    """What the program prints in Node: joined, and as it is."""
    found = []
    (folder / "vendor").mkdir()
    (folder / "vendor" / "v.js").write_text(VENDORED["vendor/v.js"], "utf-8")
    (folder / "package.json").write_text('{"type": "module"}', "utf-8")
    (folder / "joined.js").write_text(joined({**VENDORED, **sources}), "utf-8")
    for name, text in sources.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    for name in ("joined.js", "main.js"):
        done = subprocess.run([NODE, str(folder / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    return found


PROGRAMS = {
    "every form of import and export": {
        "main.js": """
            import { a, b as c } from "./a.js";
            import * as all from "./x/b.js";
            import d, { next } from "./vendor/v.js";
            import "./x/side.js";
            import { again, Own, f, g, later, h1, plus } from "./x/b.js";
            console.log(a, c, Object.keys(all).sort(), d === next, next(), again, new Own().name, f(), [...g()], h1, plus(1, -2));
            later().then(console.log);
            if (a) /[/"]/.test(a) || console.log(`${`nested ${c + 1}`} {`);
            const o = { import: 1, export: 2 };
            console.log(o.import + o.export, o?.export);
        """,
        "a.js": """
            export const a = [..."a,b"].filter((x) => x, 0)[0];
            const inner = 2;
            export { inner as b };
        """,
        "x/b.js": """
            export { a as again } from "../a.js";
            import { next } from "../vendor/v.js";
            export class Own { name = "own" }
            export function f() { return next() }
            export function* g() { yield 1; yield 2 }
            export async function later() { return "later" }
            export const h1 = { a: [1, 2], b: `${[1, 2]}, ${{}}` }
            export const plus = (one, other) => one - -other + +one
            var hidden = 1;
        """,
        "x/side.js": 'console.log("side", typeof hidden, this === undefined);',
    },
    "a statement ends with its line": {
        "main.js": """
            import {
              one,
            } from './one.js'
            const x = one
            + 1
            let y = x
            y++
            const f = () => { return
              1 }
            console.log(x, y, f())
        """,
        "one.js": "export const one = 1\nexport const two = 2\n",
    },
    "a word that means something else in another module": {
        "main.js": """
            import { one, two, three, spread, all as every, close } from "./a.js";
            import * as whole from "./a.js";
            import { told } from "./b.js";
            const local = (one) => one + two;
            console.log(one, local(5), three, spread, every, close(), whole.two, told, Object.keys(whole).sort());
        """,
        "a.js": """
            export const one = 1;
            export const two = 2;
            export const three = 3;
            export const spread = [1, 2];
            export const all = "all";
            export function close() { return "closed" }
        """,
        "b.js": """
            import { three as four, one } from "./a.js";
            const spread = [9];
            const two = 22;
            export const told = [one, two, four, ...spread, { three: 33 }.three, typeof close, typeof all];
        """,
    },
    "templates of html, and others": {
        "main.js": """
            const html = (strings, ...values) => strings.map((s, i) => s.replace(/^\\s*\\n\\s*|\\s*\\n\\s*$/g, "").replace(/\\s*\\n\\s*/g, " ") + (values[i] ?? "")).join("|");
            const words = `  two
              lines  `;
            console.log(JSON.stringify([words, html`
              <p
                class="a">
                ${`in
                  side`}
                text ${1}
                more</p>
            `]));
        """,
    },
}  # fmt: skip


@needs_node
@pytest.mark.parametrize("name", PROGRAMS)
def test_joined_modules_do_what_they_do_one_by_one(name, tmp_path):
    """Node prints the same for both, and something."""
    one, other = said(PROGRAMS[name], tmp_path)
    assert one == other != ""


def test_a_module_that_several_import_is_there_once():
    """In the order in which they run."""
    sources = {
        "main.js": 'import "./b.js";\nimport "./a.js";\nmain;',
        "a.js": 'import "./b.js";\na;',
        "b.js": "b;",
    }
    text = joined(sources)
    places = [text.index(f"// {name}\n") for name in ("b.js", "a.js", "main.js")]
    assert places == sorted(places)
    assert text.count("// b.js\n") == 1


@pytest.mark.parametrize(
    ("sources", "why"),
    [
        (
            {"main.js": 'import "./a.js";', "a.js": 'import "./main.js";'},
            "in a circle: main.js → a.js → main.js",
        ),
        ({"main.js": 'import "./none.js";'}, "main.js imports none.js, which is not there"),
        ({"main.js": "export default 1;"}, "`export default` cannot be joined"),
        ({"main.js": "export let a = 1;"}, "`export let` cannot be joined"),
        ({"main.js": "export const a = 1, b = 2;"}, "`export const` of several names cannot be joined"),
        ({"main.js": "export const { a } = b;"}, "`export const` of several names cannot be joined"),
        ({"main.js": 'f(() => import("./a.js"));'}, r"`import \(` cannot be joined"),
        ({"main.js": "import.meta.url;"}, r"`import \.` cannot be joined"),
        ({"main.js": 'import { a, } "./a.js";'}, "found '\"./a.js\"', expected from"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)
def test_what_cannot_be_joined_is_refused(sources, why):
    """Nothing is sent that would do something else."""
    with pytest.raises(ValueError, match=why):
        joined(sources)


@needs_node
def test_the_page_is_a_program(tmp_path):
    """What is sent as `main.js` can be read by Node, and has every module of ours."""
    page = read_page_files()
    path = tmp_path / "main.mjs"
    path.write_bytes(page.at("/main.js").data)
    done = subprocess.run([NODE, "--check", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own = {name for name in page.names if name.endswith(".js") and not name.startswith("vendor/")}
    assert {name for name in own if f"// {name}\n" in path.read_text("utf-8")} == own
