"""Uses a sandbox as programs do that know nothing of Hatch: by E2B's own library.

It prints one line for each step. E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY say where
the server is; the arguments are the template, and what root does in it first.
"""

import hashlib
import json
import os
import sys
import time
import urllib.error
import urllib.request

from e2b import CommandExitException, NotFoundException, Sandbox, SandboxQuery

began = time.monotonic()


def step(name):
    print(f"{time.monotonic() - began:7.2f} s  {name}", flush=True)


def expect(got, want):
    if got != want:
        raise AssertionError(f"got {got!r}, want {want!r}")


def get(port):
    """Requests a page of a port of the sandbox, as the code interpreter does."""
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": str(port)}
    page = urllib.request.Request(os.environ["E2B_SANDBOX_URL"] + "/page", headers=headers)
    try:
        with urllib.request.urlopen(page, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)["message"]


template = sys.argv[1]
box = Sandbox.create(template, timeout=300, metadata={"a b": "x=1&y"}, envs={"COLOUR": "blue"}, request_timeout=280)
try:
    step(f"created {box.sandbox_id}")
    box.commands.run(sys.argv[2], user="root")
    run = box.commands.run('echo "$COLOUR $(id -un) $HOME"; echo oops >&2')
    expect((run.stdout, run.stderr, run.exit_code), ("blue user /home/user\n", "oops\n", 0))
    step("commands.run")
    try:
        box.commands.run("exit 3")
        raise AssertionError("a command that fails raises nothing")
    except CommandExitException as failed:
        expect(failed.exit_code, 3)
    step("commands.run: exit code")

    content = os.urandom(1 << 20)
    box.files.write("d/blob", content)
    expect(hashlib.sha256(box.files.read("d/blob", format="bytes")).digest(), hashlib.sha256(content).digest())
    box.files.write("note.txt", "größe")
    expect(box.files.read("/home/user/note.txt"), "größe")
    entries = {e.name: e.size for e in box.files.list("/home/user/d")}
    expect(entries, {"blob": 1 << 20})
    expect(box.files.exists("/home/user/none"), False)
    try:
        box.files.read("none")
        raise AssertionError("a missing file raises nothing")
    except NotFoundException:
        pass
    expect(box.files.make_dir("/home/user/new"), True)
    expect(box.files.make_dir("/home/user/new"), False)
    box.files.rename("/home/user/note.txt", "/home/user/new/note.txt")
    box.files.remove("/home/user/d")
    expect(box.files.exists("/home/user/d"), False)
    step("files")

    cat = box.commands.run("cat", background=True, stdin=True)
    box.commands.send_stdin(cat.pid, "to cat\n")
    expect(cat.pid in [p.pid for p in box.commands.list()], True)
    expect(box.commands.kill(cat.pid), True)
    step("background, stdin, kill")

    expect(get(8000), (502, "The sandbox is running but port is not open"))
    box.commands.run("mkdir /tmp/www && echo served >/tmp/www/page")
    box.commands.run("cd /tmp/www && exec python3 -m http.server 8000 >/dev/null 2>&1", background=True)
    for _ in range(100):
        if (answer := get(8000))[0] == 200:
            break
        time.sleep(0.3)
    expect(answer, (200, "served\n"))
    step("a port")

    expect(box.is_running(), True)
    box.set_timeout(600)
    info = box.get_info()
    expect((info.sandbox_id, info.metadata, str(info.state.value)), (box.sandbox_id, {"a b": "x=1&y"}, "running"))
    left = (info.end_at - info.started_at).total_seconds()
    expect(590 < left < 1200, True)
    found = Sandbox.list(query=SandboxQuery(metadata={"a b": "x=1&y"})).next_items()
    expect([s.sandbox_id for s in found], [box.sandbox_id])
    expect(Sandbox.list(query=SandboxQuery(metadata={"a b": "none"})).next_items(), [])
    box.get_metrics()
    step("is_running, set_timeout, get_info, list, get_metrics")

    sleeper = box.commands.run("sleep 1000", background=True)
    box.pause()
    expect(box.is_running(), False)
    expect(get(8000), (502, "The sandbox was not found"))
    step("paused")
    again = Sandbox.connect(box.sandbox_id, timeout=300)
    expect(again.is_running(), True)
    expect(sleeper.pid in [p.pid for p in again.commands.list()], True)
    expect(again.commands.run("echo $COLOUR").stdout, "blue\n")
    step("connected; processes go on")
finally:
    expect(box.kill(), True)
expect(box.kill(), False)
expect(box.is_running(), False)
step("killed")
