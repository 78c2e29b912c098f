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

// maxWords bounds what is kept of a program's output, in bytes.
const maxWords = 400

// leaveTime is how long the output of a program that has ended may be held open
// by what it has started.
const leaveTime = time.Second

// run runs a program and waits until it has ended, at most for limit; 0 means
// that ctx alone bounds it. The error has the last of what it printed.
func (g *Guest) run(ctx context.Context, limit time.Duration, path string, args ...string) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	var out tail
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = g.root, &out, &out, leaveTime
	cmd.Env = []string{"HOME=/root", "LANG=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	err := cmd.Start()
	if err == nil {
		unspare(cmd.Process.Pid)
		err = cmd.Wait()
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	name := strings.Join(append([]string{filepath.Base(path)}, args...), " ")
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%s did not end in time: %w", name, cause)
	}
	return fmt.Errorf("%s failed: %w: %s", name, err, out.words())
}

// unspare lets the kernel choose the process like any other when memory is
// short; it would be spared as this one is.
func unspare(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0)
}

// tail keeps the end of what is written to it.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p[max(0, len(p)-maxWords):]...)
	t.buf = t.buf[max(0, len(t.buf)-maxWords):]
	return len(p), nil
}

func (t *tail) words() string {
	return strings.ToValidUTF8(string(bytes.Join(bytes.Fields(t.buf), []byte(" "))), "")
}
