"""`nibble quantize` on disks that are full, too small, read-only, or closed to it (unittest only).

Real file systems of our own size are mounted in a mount namespace, as root or where users may have one; elsewhere those
tests are skipped, and faults_test.py has a file-size limit stand for a full disk."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from tiny_model import file_bytes, varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]

# sh SCRIPT DISK SIZE COMMAND…: mounts a disk at DISK, then runs on it.
MOUNT = 'mount -t tmpfs -o size=$2,mode=0700 none "$1" || exit 99; disk=$1; shift 2\n'
# Stops the run at the journal line $LINES, fills the disk, and lets it go on. "rc N" tells how it ended, "complete" that
# its folder looks so; afterwards there is room again, and it is resumed.
FILL = MOUNT + '''
lines() { cat "$disk/output/.nibble/journal.jsonl" 2>/dev/null | wc -l; }
"$@" 2>"$LOG" & run=$!
while kill -0 $run 2>/dev/null && [ $(lines) -lt $LINES ]; do :; done
kill -STOP $run 2>/dev/null
cat /dev/zero > "$disk/ballast" 2>/dev/null
kill -CONT $run 2>/dev/null
wait $run; code=$?; echo rc $code
if [ -e "$disk/output/config.json" ]; then echo complete; fi
rm "$disk/ballast"
[ $code -eq 0 ] || "$@" --resume >&2 || exit 98
cp -r "$disk/output" "$COPY"
'''


def namespace():
    """The command that gives a process mounts of its own, or None."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = subprocess.run([*command, "sh", "-c", MOUNT, "sh", folder, "1m"], capture_output=True)
            except FileNotFoundError:
                return None
            if done.returncode == 0:
                return command
    return None


NAMESPACE = namespace()
needs_mounts = unittest.skipUnless(NAMESPACE, "this machine lets us mount nothing")


class DiskFaults(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        (self.folder / "text.txt").write_text(varied_text(3000))
        (self.folder / "disk").mkdir()
        write_tiny_llama(self.folder / "model", num_layers=4)

    def command(self, *flags, method="gptq", output=None, samples="16"):
        group_size = [] if method == "fp8" else ["--group-size", "32"]
        return [NIBBLE, "quantize", self.folder / "model", "--method", method, *group_size, "--calibration",
                self.folder / "text.txt", "--samples", samples, "--seq-len", "64", "--output",
                output or self.folder / "disk" / "output", *flags]

    def run_on_disk(self, size, *command, script=MOUNT + 'exec "$@"', **environment):
        done = subprocess.run([*NAMESPACE, "sh", "-c", script, "sh", self.folder / "disk", size, *command],
                              capture_output=True, text=True, timeout=60, env={**os.environ, **environment})
        self.assertNotIn(done.returncode, (98, 99), done.stderr)
        return done

    def expect_error(self, done, *parts, code=1):
        self.assertEqual(done.returncode, code, done.stderr)
        message = done.stderr.strip().rsplit("\n", 1)[-1]
        self.assertTrue(message.startswith("nibble: error: "), message)
        for part in parts:
            self.assertIn(part, message)

    def test_a_run_larger_than_any_disk_is_refused_before_anything_is_written(self):
        # The activations of 64 thousand million tokens have no room in memory, and none on disk.
        done = subprocess.run(self.command(samples=str(10**9)), capture_output=True, text=True, timeout=60)
        self.expect_error(done, str(self.folder / "disk" / "output"), "the run needs about", " of disk (",
                          "are free; make room or choose another --output")
        self.assertFalse((self.folder / "disk" / "output").exists())

    @needs_mounts
    def test_a_disk_too_small_for_the_checkpoint_is_refused_before_anything_is_written(self):
        script = MOUNT + '"$@"; code=$?; ls -A "$disk"; exit $code'
        done = self.run_on_disk("100k", *self.command(method="rtn"), script=script)
        self.expect_error(done, "disk/output: the run needs about", "and 102.4 KB are free")
        self.assertEqual(done.stdout, "")
        self.assertEqual(self.run_on_disk("1m", *self.command(method="rtn")).returncode, 0)

    @needs_mounts
    def test_a_disk_that_others_fill_stops_the_run_which_can_go_on(self):
        for method, flags in [("gptq", []), ("squeezellm", ["--guided"])]:
            whole = self.folder / f"{method}-whole"
            subprocess.run(self.command(*flags, method=method, output=whole), check=True, capture_output=True)
            num_full = 0
            for attempt in range(24):  # on a busy machine the disk may be full too late
                if attempt >= 4 and num_full > 0:
                    break
                lines = (1, 2, 3, 5)[attempt % 4]
                copy, log = self.folder / f"{method}-{attempt}", self.folder / "log"
                done = self.run_on_disk("16m", *self.command(*flags, method=method), script=FILL, LINES=str(lines),
                                        LOG=str(log), COPY=str(copy))
                self.assertEqual(file_bytes(copy), file_bytes(whole), (method, lines))
                if "rc 0" in done.stdout:  # it was through before the disk was full
                    continue
                num_full += 1
                self.assertEqual(done.stdout, "rc 1\n", log.read_text())
                message = log.read_text().strip().rsplit("\n", 1)[-1]
                self.assertRegex(message, r"^nibble: error: .*disk/output/.*No space left on device$")
            self.assertGreater(num_full, 0, method)

    @needs_mounts
    def test_a_read_only_disk_is_named(self):
        script = MOUNT + 'mount -o remount,ro "$disk"; exec "$@"'
        self.expect_error(self.run_on_disk("16m", *self.command(), script=script), "disk/output", "Read-only file system")

    def test_what_the_user_may_not_read_or_write_is_named(self):
        nibble, user = NIBBLE, {}
        if os.getuid() == 0:  # whom no mode stops
            nibble, user = shutil.copy2(NIBBLE, self.folder), {"user": 65534, "group": 65534, "extra_groups": []}
            self.folder.chmod(0o755)

        def run(output):
            return subprocess.run([nibble, *self.command(output=output)[1:]], capture_output=True, text=True, timeout=60,
                                  **user)
        (self.folder / "disk").chmod(0o555)
        self.expect_error(run(self.folder / "disk" / "output"), "disk/output", "Permission denied")
        (self.folder / "free").mkdir()
        (self.folder / "free").chmod(0o777)
        for name in ["model.safetensors", "config.json", "tokenizer.json"]:
            (self.folder / "model" / name).chmod(0)
            self.expect_error(run(self.folder / "free" / "output"), name, "Permission denied")
            self.assertFalse((self.folder / "free" / "output").exists())
            (self.folder / "model" / name).chmod(0o644)
        (self.folder / "text.txt").chmod(0)
        self.expect_error(run(self.folder / "free" / "output"), "text.txt", "Permission denied")
        self.assertFalse((self.folder / "free" / "output").exists())

    def test_a_log_that_cannot_be_written_stops_nothing(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(self.command(), stdout=subprocess.DEVNULL, stderr=full, timeout=60)
        self.assertEqual(done.returncode, 0)
        whole = self.folder / "whole"
        subprocess.run(self.command(output=whole), check=True, capture_output=True)
        self.assertEqual(file_bytes(self.folder / "disk" / "output"), file_bytes(whole))


if __name__ == "__main__":
    unittest.main()
