//go:build system

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testCommandLine runs the commands that a new user of hatch runs.
func testCommandLine(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	if got := w.hatch(t, "wait", "--for", "port:22", alpha); strings.Contains(got, "\x1b") {
		t.Errorf("hatch wait prints escape sequences to a pipe: %q", got)
	}
	if got := w.hatch(t, "ssh", "-i", w.keyFile, alpha, "--", "uname", "-sm"); got != "Linux x86_64\n" {
		t.Errorf("hatch ssh prints %q", got)
	}
	if got := w.hatch(t, "ssh", alpha, "--", "uname", "-sm"); got != "Linux x86_64\n" { // there is no other key
		t.Errorf("hatch ssh with a certificate prints %q", got)
	}
	w.requireCertificates(t, v, w.shared(t, beta))
	if _, err := w.tryHatch("ssh", "-i", w.keyFile, alpha, "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("hatch ssh does not return the exit code: %v", err)
	}
	if got := w.hatch(t, "ls"); !strings.Contains(got, alpha) || !strings.Contains(got, v.GuestIP) {
		t.Errorf("hatch ls does not show the VM:\n%s", got)
	}
	if got := w.hatch(t, "logs", "--tail", "20", alpha); strings.TrimSpace(got) == "" {
		t.Error("hatch logs shows nothing of the console")
	}
	if got := w.typeInto(t, alpha, "\n", "login:"); !strings.Contains(got, alpha) {
		t.Errorf("the console's prompt does not have the VM's name: %q", got)
	}
	w.requireLifeByHatch(t)
}

// typeInto types into a VM's console with hatch, and returns the console's output
// once it contains awaited.
func (w *world) typeInto(t *testing.T, vm, typed, awaited string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := w.command(ctx, "console", vm)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}()
	if _, err := io.WriteString(stdin, typed); err != nil {
		t.Fatalf("cannot type into the console: %v", err)
	}
	var seen strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), awaited) {
		n, err := stdout.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("the console ends with %v before it shows %q:\n%s", err, awaited, seen.String())
		}
	}
	return seen.String()
}

// requireLifeByHatch creates, uses and deletes a VM with hatch.
func (w *world) requireLifeByHatch(t *testing.T) {
	t.Helper()
	out := w.hatch(t, "run", "-d", "--name", "cli", "--memory", fmt.Sprint(minimalMem), "--disk", fmt.Sprint(smallDisk), "minimal")
	id := strings.TrimSpace(out)
	t.Cleanup(func() { w.cleanUp(t, id) })
	if v := w.get(t, id); v.Name != "cli" || v.State != api.StateRunning {
		t.Errorf("hatch run -d made %q, %s", v.Name, v.State)
	}
	for _, c := range []struct{ verb, want string }{
		{"pause", api.StatePaused},
		{"resume", api.StateRunning},
		{"stop", api.StateStopped},
		{"start", api.StateRunning},
	} {
		w.hatch(t, c.verb, "cli")
		if got := w.get(t, id).State; got != c.want {
			t.Errorf("after hatch %s the state is %s", c.verb, got)
		}
	}
	if got := w.hatch(t, "inspect", id[:8]); !strings.Contains(got, id) {
		t.Errorf("hatch inspect with the beginning of an id prints %q", got)
	}
	w.hatch(t, "rm", "-f", "cli")
	if got := w.hatch(t, "ls", "-q"); strings.Contains(got, id) {
		t.Error("hatch ls shows the deleted VM")
	}
}

// testRunInScripts calls hatch run and exec as scripts do, without a terminal or a
// key. None of these calls may go on for ever.
func testRunInScripts(t *testing.T, w *world) {
	small := fmt.Sprintf("--memory %d --disk %d minimal", minimalMem, smallDisk)
	for _, tc := range []struct {
		line, out string
		code      int
	}{
		{"$HATCH run --rm " + small + " -- echo hi </dev/null", "hi\n", 0},
		{"echo 'echo $((6*7)); exit 7' | $HATCH run --rm --no-network " + small, "42\n", 7},
	} {
		t.Run(tc.line, func(t *testing.T) {
			if out, code := w.line(t, tc.line); out != tc.out || code != tc.code {
				t.Errorf("exit code %d, printed %q", code, out)
			}
		})
	}
	body := minimal()
	body.Name, body.EnableNetwork = "pipes", new(false)
	v := w.create(t, body, client.CreateOptions{Wait: "ready"})
	for _, tc := range []struct {
		line, out string
		code      int
	}{
		{"$HATCH exec pipes yes | head -n 2; exit ${PIPESTATUS[0]}", "y\ny\n", 141},
		{"$HATCH exec pipes sh -c 'trap \"\" PIPE; yes; exec sleep 4321' | head -n 1; exit ${PIPESTATUS[0]}", "y\n", 137},
		{"$HATCH exec pipes yes >/dev/full", "", 125},
		{"$HATCH exec pipes echo hi >&-", "", 0},
		{"$HATCH exec pipes true | true; exit ${PIPESTATUS[0]}", "", 0},
	} {
		t.Run(tc.line, func(t *testing.T) {
			if out, code := w.line(t, tc.line); out != tc.out || code != tc.code {
				t.Errorf("exit code %d, printed %q", code, out)
			}
		})
	}
	if left := w.hatch(t, "execs", "-q", v.ID); left != "" {
		t.Errorf("commands are left running: %s", left)
	}
	w.hatch(t, "kill", "pipes")
	if v := w.get(t, v.ID); v.State != api.StateStopped || !strings.Contains(v.StateReason, "killed at once") {
		t.Errorf("after hatch kill it is %s: %s", v.State, v.StateReason)
	}
}

// line runs a line of bash in which $HATCH is hatch, and returns its output and exit
// code.
func (w *world) line(t *testing.T, line string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	hatch := w.command(ctx)
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Env = append(hatch.Env, "HATCH="+hatch.Path)
	cmd.Stderr = t.Output()
	cmd.WaitDelay = normalReply
	text, err := cmd.Output()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited || ctx.Err() != nil {
		t.Fatalf("%s: %v, %v", line, err, ctx.Err())
	}
	return string(text), cmd.ProcessState.ExitCode()
}
