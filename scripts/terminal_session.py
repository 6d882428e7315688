"""Runs the commands of a session in a pseudo-terminal and draws what it shows as an SVG.

Takes the SVG's path. pyte follows the terminal's control sequences, rich draws the result.
"""

import os
import pty
import re
import shlex
import subprocess
import sys
import unicodedata

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 100, 200
SESSION = [
    "mvm instance list ci/runners",
    "mvm run ci/runners --timings --in examples/hello-c -- make -C hello-c test",
    "mvm run ci/runners -- sh -c 'rm -rf /nix/store; echo \"all gone\"; exit 3' || echo \"exit status $?\"",
    "mvm pool scale ci/runners --wait && mvm instance list ci/runners",
]
# The page that shows the drawing must not ask another server for a font.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def session(screen):
    """Runs all commands in one shell, so that `$?` is what a reader expects, and feeds the screen."""
    script = "".join(f"printf '\\n\\033[1;32m$\\033[0m %s\\n' {shlex.quote(line)}\n{line}\n" for line in SESSION)
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    subprocess.run(["stty", "cols", str(COLUMNS), "rows", "50"], stdin=follower, check=True)
    shell = subprocess.Popen(
        ["bash", "-c", script], stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # EIO: the last program has closed the terminal.
            break
        if not data:
            break
        stream.feed(data)
    shell.wait()


def drawn(screen):
    """Returns the lines of the screen with their colours, without empty lines at both ends."""
    lines = []
    for row in range(screen.cursor.y + 1):
        text = Text()
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            if not cell.data or unicodedata.category(cell.data[0]) == "Cc":
                continue
            colour = "" if cell.fg == "default" else cell.fg.replace("brown", "yellow")
            if re.fullmatch("[0-9a-f]{6}", colour):
                colour = f"#{colour}"
            text.append(cell.data, style=" ".join(filter(None, ["bold" if cell.bold else "", colour])))
        text.rstrip()
        lines.append(text)
    while lines and not lines[0].plain:
        lines.pop(0)
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def main():
    screen = pyte.Screen(COLUMNS, ROWS)
    session(screen)
    console = Console(
        record=True, width=COLUMNS, file=open(os.devnull, "w"), color_system="truecolor", force_terminal=True
    )
    for line in drawn(screen):
        console.print(line, soft_wrap=True)
    console.save_svg(sys.argv[1], title="mvm", code_format=FORMAT, unique_id="session")
    print(f"recorded {sys.argv[1]}")


main()
