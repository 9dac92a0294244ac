"""tools/check_layers.py finds what it is there to find (unittest: needs nothing but Python)."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools" / "check_layers.py"
TABLE = """# x
| folder | is | may include |
|---|---|---|
| `core` | base | – |
| `backend` | table | core, backend/cpu |
| `backend/cpu`, `backend/cuda` | kernels | core, backend |
| `apps` | all | everything |
"""


class CheckLayers(unittest.TestCase):
    def check(self, files, table=TABLE):
        """(exit code, output) of a check of a tree with these files."""
        with tempfile.TemporaryDirectory() as root:
            for name, text in {**files, "docs/ARCHITECTURE.md": table}.items():
                path = pathlib.Path(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            done = subprocess.run([sys.executable, SCRIPT, root], capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr

    def test_accepts_what_the_table_allows(self):
        code, output = self.check({
            "src/core/a.h": "#include <vector>\n",
            "src/backend/b.h": '#include "core/a.h"\n',
            "src/backend/cpu/c.h": '#include "backend/b.h"\n#include "core/a.h"\n#include "other/library.h"\n',
            "src/backend/b.cpp": '#include "backend/cpu/c.h"\n',
            "src/apps/x/main.cpp": '#include "backend/cpu/c.h"\n',
        })
        self.assertEqual(code, 0, output)
        self.assertIn("5 files, 0 includes", output)

    def test_names_file_and_line_of_an_include_upwards(self):
        code, output = self.check({"src/core/a.h": '\n#include "backend/b.h"\n', "src/backend/b.h": ""})
        self.assertEqual(code, 1)
        self.assertIn("src/core/a.h:2: core may not include backend", output)

    def test_keeps_sibling_backends_apart(self):
        code, output = self.check({
            "src/backend/cuda/k.cu": "#  include <backend/cpu/c.h>\n",
            "src/backend/cpu/c.h": "",
        })
        self.assertEqual(code, 1)
        self.assertIn("backend/cuda may not include backend/cpu", output)

    def test_refuses_fmt_in_headers_that_a_cu_file_reaches(self):
        code, output = self.check({
            "src/backend/cuda/k.cu": '#include "backend/b.h"\n',
            "src/backend/b.h": '#include "core/a.h"\n',
            "src/core/a.h": "#include <fmt/format.h>\n",
            "src/core/unreached.h": "#include <fmt/format.h>\n",
        })
        self.assertEqual(code, 1)
        self.assertIn("src/core/a.h:1: a .cu file reaches <fmt/format.h>", output)
        self.assertNotIn("unreached", output)

    def test_asks_for_paths_from_src(self):
        code, output = self.check({"src/core/a.h": "", "src/core/b.h": '#include "a.h"\n'})
        self.assertEqual(code, 1)
        self.assertIn('write "core/a.h"', output)

    def test_refuses_a_folder_without_a_row_and_a_missing_table(self):
        code, output = self.check({"src/utils/a.h": ""})
        self.assertEqual(code, 1)
        self.assertIn("src/utils/a.h: its folder has no row", output)
        code, output = self.check({"src/core/a.h": ""}, table="# nothing\n")
        self.assertEqual(code, 1)
        self.assertIn("no table", output)


if __name__ == "__main__":
    unittest.main()
