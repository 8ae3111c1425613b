"""Answers that would act, were they evaluated anywhere: deeds in many quotings, encodings and nestings."""

import base64
import html
import json
import random
from urllib.parse import quote

SPLICED = 0.2  # share of those put into a right answer
PLAIN = 0.3  # share of those of the pieces that a scorer which evaluates may see

PIECES = [
    *(
        "x",
        "C",
        "S",
        "N",
        "E",
        "I",
        "O",
        "_",
        "pi",
        "sin",
        "exp",
        "sqrt",
        "log",
        "open",
        "exit",
        "help",
        "print",
    ),
    *(
        "import",
        "lambda",
        "not",
        "in",
        "is",
        "if",
        "else",
        "for",
        "await",
        "yield",
        "del",
        "assert",
        "return",
    ),
    *(
        "0",
        "1",
        "2.5",
        "3e2",
        ".5",
        "1.",
        "(",
        ")",
        "(",
        ")",
        "[",
        "]",
        "[",
        "]",
        ",",
        "+",
        "-",
        "*",
        "/",
        "^",
        "=",
    ),
]

DEEDS = [
    "__import__('os').system('touch {canary}')",
    "open('{canary}', 'w').write('x')",
    "__import__('pathlib').Path('{canary}').touch()",
    "exec(\"open('{canary}', 'w')\")",
    "eval(\"__import__('os').mkdir('{canary}')\")",
    "__import__('subprocess').check_output(['touch', '{canary}'])",
    "__import__('os').environ['HF_TOKEN']",
    "open('{secret}').read()",
    "open('/proc/self/environ').read()",
    "print(__import__('os').environ)",
    "__import__('socket').create_connection(('127.0.0.1', 9))",
    "getattr(__builtins__, 'open')('{canary}', 'w')",
    "().__class__.__base__.__subclasses__()[0]",
    "().__class__.__mro__[1].__subclasses__",
    "(lambda: open('{canary}', 'w'))()",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', '{canary}'])",
    "sin.__globals__['__builtins__']['open']('{canary}', 'w')",
    "Symbol.__init__.__globals__",
    "S(\"__import__('os').system('touch {canary}')\")",
    'sympify(\'open("{canary}", "w")\')',
    'parse_expr(\'open("{canary}", "w")\')',
    "Lambda(x, open('{canary}', 'w'))",
    "lambdify(x, \"open('{canary}', 'w')\")(1)",
    'f\'{{open("{canary}", "w")}}\'',
    "import os\nos.system('touch {canary}')",
    "open(chr(47) + chr(116), chr(119))",
    "breakpoint()",
    "exit(3)",
    "input()",
    "print('<answer>')",
    "!touch {canary}",
    "$(touch {canary})",
    "`touch {canary}`",
    "{{{{ ''.__class__ }}}}",
    "cos\nsystem\n(S'touch {canary}'\ntR.",
    "!!python/object/apply:os.system ['touch {canary}']",
    "\\input{{{secret}}}",
    "\\immediate\\write18{{touch {canary}}}",
    "<!ENTITY x SYSTEM 'file://{secret}'>",
]
QUOTINGS = [
    lambda s: s,
    lambda s: f"'{s}'",
    lambda s: f'"{s}"',
    lambda s: f"'''{s}'''",
    lambda s: f'"""{s}"""',
    repr,
    lambda s: repr(repr(s)),
    json.dumps,
    lambda s: "b" + repr(s),
    lambda s: "r" + repr(s),
    lambda s: "u" + repr(s),
    lambda s: "f" + repr("{" + s + "}"),
    lambda s: f"{s[: len(s) // 2]!r} {s[len(s) // 2 :]!r}",
    lambda s: f"“{s}”",
    lambda s: f"`{s}`",
    lambda s: f"```python\n{s}\n```",
]
ENCODINGS = [
    lambda s: s,
    lambda s: s,
    lambda s: "".join(f"\\x{ord(c):02x}" for c in s),
    lambda s: "".join(f"\\u{ord(c):04x}" for c in s),
    lambda s: "".join(f"\\{ord(c):o}" for c in s),
    lambda s: s.replace("_", "\\N{LOW LINE}"),
    lambda s: s.replace("_", "\uff3f"),
    lambda s: "".join(
        chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in s
    ),  # full width, which Python folds
    lambda s: "".join(chr(0x1D44E + ord(c) - 97) if c in "abcdefg" else c for c in s),  # mathematical italic
    lambda s: s.replace("'", '"'),
    lambda s: s.replace(".", " . ").replace("(", " ("),
    lambda s: s.replace("(", "\u200b("),
    lambda s: s.replace(" ", "\t"),
    lambda s: f"exec(bytes([{', '.join(str(b) for b in s.encode())}]))",
    lambda s: f"exec(bytes.fromhex('{s.encode().hex()}'))",
    lambda s: f"exec(__import__('base64').b64decode('{base64.b64encode(s.encode()).decode()}'))",
    lambda s: f"eval({' + '.join(f'chr({ord(c)})' for c in s)})",
    html.escape,
    quote,
]
NESTINGS = [
    lambda s: s,
    lambda s: f"[{s}]",
    lambda s: f"[[1, 2], [{s}, 3]]",
    lambda s: f"({s},)",
    lambda s: f"({s})",
    lambda s: f"{{{s}}}",
    lambda s: f"{{'answer': {s}}}",
    lambda s: f'{{"answer": {s}}}',
    lambda s: f"x + {s}",
    lambda s: f"x**2/2 + C + {s}*0",
    lambda s: f"{s} if 1 else 0",
    lambda s: f"1 if {s} else 0",
    lambda s: f"[{s} for i in (1, 2)]",
    lambda s: f"(lambda: {s})()",
    lambda s: f"sin({s})",
    lambda s: f"sqrt({s})(1)",
    lambda s: f"S({s})",
    lambda s: f"Symbol({s})",
    lambda s: f"Function({s})(x)",
    lambda s: f"Integral({s}, x)",
    lambda s: f"Integer({s})",
    lambda s: f"x.subs(x, {s})",
    lambda s: f"[1, 2][{s}]",
    lambda s: f"*{s}",
    lambda s: f"y := {s}",
    lambda s: f"1;{s}",
    lambda s: f"1\n{s}",
    lambda s: f"1 # \n+ {s}",
    lambda s: f"\\boxed{{{s}}}",
    lambda s: f"\\boxed{{\\frac{{{s}}}{{2}}}}",
    lambda s: f"${s}$",
    lambda s: f"\\text{{{s}}}",
    lambda s: f"\\operatorname{{{s}}}(x)",
    lambda s: f"x_{{{s}}}",
    lambda s: f"\\begin{{pmatrix}} {s} & 1 \\end{{pmatrix}}",
    lambda s: f"The answer is {s}.",
]
FRAMES = [
    "<answer>{}</answer>",
    "<answer>\n{}\n</answer>",
    "\\boxed{{{}}}",
    "<answer>\\boxed{{{}}}</answer>",
    "<answer>{}",
]


def plain(rng: random.Random) -> str:
    """Words, numbers, arithmetic and brackets in any order, mostly balanced; a power at most."""
    pieces = [rng.choice(PIECES) for _ in range(rng.randrange(1, 12))]
    if rng.random() < 0.5:
        pieces = [p for p in pieces if p not in "()[]"]
        place = rng.randrange(len(pieces) + 1)
        pieces[place:] = [rng.choice(("(", "[", "sin (", "x (")), *pieces[place:], ")"]
        if "[" in pieces[place]:
            pieces[-1] = "]"
    if rng.random() < 0.2:
        pieces += ["**", "2"]
    return " ".join(pieces)


def payload(rng: random.Random, canary: str, secret: str, right: str) -> str:
    """One completion: a deed, encoded, quoted and nested, at times within a right answer."""
    if rng.random() < PLAIN:
        return rng.choice(FRAMES).format(plain(rng))
    text = rng.choice(DEEDS).format(canary=canary, secret=secret)
    text = rng.choice(ENCODINGS)(text)
    for _ in range(rng.choice((0, 1, 1, 2))):
        text = rng.choice(QUOTINGS)(text)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        text = rng.choice(NESTINGS)(text)
    if rng.random() < SPLICED:
        place = rng.randrange(len(right) + 1)
        text = right[:place] + text + right[place:]
    return rng.choice(FRAMES).format(text)
