package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// programDirs are where a guest keeps its programs.
var programDirs = []string{"usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"}

// program returns the path of one of the guest's programs, or "".
func (g *Guest) program(name string) string {
	for _, dir := range programDirs {
		path := g.path(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// maxTail limits the log tail of a program, in bytes.
const maxTail = 400

// outputTimeout is how long children of a program that has ended may keep its output
// open.
const outputTimeout = time.Second

// run runs a program and waits for its end, at most for timeout; 0 means as long as
// ctx allows. The error includes the program's log tail.
func (g *Guest) run(ctx context.Context, timeout time.Duration, path string, args ...string) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var out tail
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = g.root, &out, &out, outputTimeout
	cmd.Env = []string{"HOME=/root", "LANG=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	err := cmd.Start()
	if err == nil {
		resetOOMScore(cmd.Process.Pid)
		err = cmd.Wait()
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	name := strings.Join(append([]string{filepath.Base(path)}, args...), " ")
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%s did not end in time: %w", name, cause)
	}
	return fmt.Errorf("%s failed: %w: %s", name, err, out.String())
}

// resetOOMScore resets a child's score for the out-of-memory killer: it has inherited
// the agent's, which protects it.
func resetOOMScore(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0)
}

// tail is a writer that keeps the last maxTail bytes.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p[max(0, len(p)-maxTail):]...)
	t.buf = t.buf[max(0, len(t.buf)-maxTail):]
	return len(p), nil
}

// String returns the bytes as one line of valid UTF-8.
func (t *tail) String() string {
	return strings.ToValidUTF8(string(bytes.Join(bytes.Fields(t.buf), []byte(" "))), "")
}
