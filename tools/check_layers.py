#!/usr/bin/env python3
"""Fails on an include that the layer table of docs/ARCHITECTURE.md does not allow.

usage: check_layers.py [ROOT]      ROOT holds docs/ARCHITECTURE.md and src/; default: this repository

The table is the one whose header row is `| folder | is | may include |`. A file belongs to the row of its deepest
folder that has one. Headers that a .cu file reaches may include neither fmt nor spdlog.
"""

import pathlib
import re
import sys

SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
EVERYTHING = "everything"


def read_table(document):
    """{folder: set of folders it may include}, in the table's order."""
    rows, in_table = {}, False
    for line in document.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells == ["folder", "is", "may include"]:
            in_table = True
        elif in_table and not line.startswith("|"):
            break
        elif in_table and not set(line) <= set("|-: "):
            allowed = {word.strip(" `") for word in cells[2].split(",")} - {"–", ""}
            for folder in re.findall(r"`([^`]+)`", cells[0]):
                rows[folder] = allowed
    if not rows:
        sys.exit(f"{document}: no table with the header | folder | is | may include |")
    unknown = {name for allowed in rows.values() for name in allowed} - set(rows) - {EVERYTHING}
    if unknown:
        sys.exit(f"{document}: the table allows folders that have no row: {', '.join(sorted(unknown))}")
    return rows


def row_of(path, rows):
    """The deepest folder of `path` (relative to src) that has a row, or None."""
    return next((str(p) for p in path.parents if str(p) in rows), None)


def includes(path):
    """(line number, path between the quotes, is it "quoted") of each include."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1) or match.group(2), match.group(1) is not None


def check_file(path, src, rows):
    relative = path.relative_to(src)
    folder = row_of(relative, rows)
    if folder is None:
        return [f"src/{relative}: its folder has no row in the layer table"]
    problems = []
    for number, target, is_quoted in includes(path):
        place = f"src/{relative}:{number}"
        if is_quoted and not (src / target).exists() and (path.parent / target).exists():
            problems.append(f'{place}: write "{(path.parent / target).relative_to(src)}", the path from src')
        target_folder = row_of(pathlib.PurePosixPath(target), rows) if (src / target).exists() else None
        if target_folder in (None, folder) or EVERYTHING in rows[folder]:
            continue
        if target_folder not in rows[folder]:
            problems.append(f'{place}: {folder} may not include {target_folder} ("{target}")')
    return problems


def check_cuda(src):
    """Headers reachable from .cu files that include what nvcc cannot compile."""
    problems, seen = [], set()
    queue = sorted(src.rglob("*.cu"))
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for number, target, _ in includes(path):
            if target.startswith(("fmt/", "spdlog/")):
                problems.append(f"src/{path.relative_to(src)}:{number}: a .cu file reaches <{target}>")
            elif (src / target).is_file():
                queue.append(src / target)
    return problems


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent)
    src = root / "src"
    rows = read_table(root / "docs" / "ARCHITECTURE.md")
    files = sorted(path for path in src.rglob("*") if path.suffix in SUFFIXES)
    problems = [problem for path in files for problem in check_file(path, src, rows)] + check_cuda(src)
    for problem in problems:
        print(problem)
    print(f"{len(files)} files, {len(problems)} includes outside the layers")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())
