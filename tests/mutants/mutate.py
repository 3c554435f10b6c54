"""Small changes to C and GLSL text: what they are, and which ones a seed draws."""
import random
import re

# kind, pattern, what takes the place of group 1 (a function of the match). A condition's end is found by its brackets.
SWAPS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&", "+": "-", "-": "+",
         "*": "/", "/": "*", "%": "/", "<<": ">>", ">>": "<<", "&": "|", "|": "&", "^": "&", "+=": "-=", "-=": "+=",
         "|=": "&=", "&=": "|=", "*=": "+=", "++": "--"}
NAMES = {"min": "max", "max": "min", "min_of": "max_of", "max_of": "min_of", "floor": "ceil", "ceil": "floor",
         "round": "floor", "roundEven": "floor", "trunc": "floor", "subgroupMax": "subgroupMin", "subgroupMin": "subgroupMax",
         "subgroupAdd": "subgroupMax", "lrintf": "floorf", "floorf": "ceilf",
         "ceilf": "floorf", "true": "false", "false": "true"}

RULES = [
    ("comparison", re.compile(r"(?<= )(<=|>=|==|!=|<|>)(?= )"), lambda m: SWAPS[m[1]]),
    ("logic", re.compile(r"(?<= )(&&|\|\|)(?= )"), lambda m: SWAPS[m[1]]),
    ("arithmetic", re.compile(r"(?<= )([-+*/%])(?= )"), lambda m: SWAPS[m[1]]),
    ("bits", re.compile(r"(?<= )(<<|>>|[&|^])(?= )"), lambda m: SWAPS[m[1]]),
    ("assignment", re.compile(r"(?<= )([-+*|&]=)(?= )"), lambda m: SWAPS[m[1]]),
    ("name", re.compile(r"\b(%s)\b" % "|".join(NAMES)), lambda m: NAMES[m[1]]),
    ("constant", re.compile(r"(?<![\w.])(\d{1,5})(?=(?:u|ull|ll)?(?![\w.]))"), lambda m: str(int(m[1]) + 1)),
    ("constant", re.compile(r"(?<![\w.])(\d{1,5})(?=\.\d+f?\b)"), lambda m: str(int(m[1]) + 1)),
    ("not", re.compile(r"(?<=[ (])(!)(?=[\w(])"), lambda m: ""),
    ("barrier", re.compile(r"\b((?:barrier|memoryBarrier\w*|subgroupBarrier|groupMemoryBarrier)\(\);)"), lambda m: ";"),
    # A call whose result nobody takes, on a line of its own.
    ("statement", re.compile(r"^ +((?:\w+(?:->|\.))*[a-z]\w*\(.*\);)$"), lambda m: ";"),
    ("statement", re.compile(r"^ +((?:\w+(?:->|\.|\[\w+\]))*\w+ [-+*/|&]?= [^;{]*;)$"), lambda m: ";"),
]
CONDITION = re.compile(r"\b(?:if|while) (\()")
RETURN = re.compile(r"\breturn (false|true);")


def blanked(text):
    """The text with comments, strings, attributes and preprocessor lines as blanks of the same length."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match[0])
    text = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, text, flags=re.S)
    text = re.sub(r"^[ ]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)
    text = re.sub(r"\[\[\w+\]\]", blank, text)
    # Declarations of what stands elsewhere, and checks that are no code.
    return re.sub(r"^(?:layout\b|_?[sS]tatic_assert|struct \w+;|extern )[^\n]*", blank, text, flags=re.M)


def closing(text, start):
    depth = 0
    for i in range(start, min(len(text), start + 400)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    return None


def candidates(path, text):
    """All mutants of a file: (kind, offset, old, new), in order."""
    found, clean = [], blanked(text)
    wide = [(kind, re.compile(p.pattern, p.flags | re.M), new) for kind, p, new in RULES]
    for kind, pattern, new in wide:
        for match in pattern.finditer(clean):
            if kind == "constant" and re.search(r"\benum\b[^;{]*$", clean[:match.start()].rsplit("\n", 1)[-1]):
                continue
            if kind == "statement" and match[1].startswith(("return", "sizeof")):
                continue
            found.append((kind, match.start(1), text[match.start(1):match.end(1)], new(match)))
    for match in CONDITION.finditer(clean):
        end = closing(clean, match.start(1))
        if end is None:
            continue
        inner = text[match.start(1) + 1:end]
        loop = match[0].startswith("while")
        for value in ("false",) if loop else ("true", "false"):
            word = value if not path.endswith(".c") else str(int(value == "true"))
            # Of the same number of lines, so that what comes behind keeps its place.
            found.append(("condition", match.start(1) + 1, inner, word + "\n" * inner.count("\n")))
    return sorted(set(found), key=lambda c: (c[1], c[0], c[3]))


def draw(texts, seed):
    """An endless order of mutants made finite: files by turns, in each a kind by chance and one of that kind."""
    generator = random.Random(seed)
    pools = {}
    for path in sorted(texts):
        kinds = {}
        for candidate in candidates(path, texts[path]):
            kinds.setdefault(candidate[0], []).append(candidate)
        for pool in kinds.values():
            generator.shuffle(pool)
        if kinds:
            pools[path] = kinds
    while pools:
        paths = sorted(pools)
        generator.shuffle(paths)
        for path in paths:
            kinds = pools[path]
            kind = generator.choice(sorted(kinds))
            yield (path,) + kinds[kind].pop()
            if not kinds[kind]:
                del kinds[kind]
            if not kinds:
                del pools[path]
