package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/account"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// launch is a process about to be started.
type launch struct {
	spec   wire.ProcessSpec
	who    account.Account
	spared bool // the kernel kills the agent last when memory is short

	argv []string
	env  map[string]string
	dir  string
}

// cannotRun is a command that a shell would not run either.
type cannotRun struct {
	code int // as a shell's
	text string
}

func (c *cannotRun) Error() string { return c.text }

// Command is what a spec comes to in this guest.
type Command struct {
	Path       string
	Argv, Env  []string
	Dir        string
	Credential *syscall.Credential
}

// Resolve settles what is to be run for a spec, for one who runs it itself.
func Resolve(spec wire.ProcessSpec) (*Command, error) {
	who, err := account.Find("/", spec.User)
	if err != nil {
		return nil, err
	}
	l := &launch{spec: spec, who: who}
	if err := l.check(); err != nil {
		return nil, err
	}
	path, err := l.find()
	if err != nil {
		return nil, err
	}
	return &Command{Path: path, Argv: l.argv, Env: l.environ(), Dir: l.dir, Credential: l.credential()}, nil
}

// check looks at the spec and fills in what it leaves open.
func (l *launch) check() error {
	l.argv = l.spec.Argv
	if l.spec.Shell != "" {
		l.argv = []string{"/bin/sh", "-c", l.spec.Shell}
	}
	if len(l.argv) == 0 || l.argv[0] == "" {
		return wire.Refuse(wire.CodeInvalid, "there is no command to run")
	}
	l.env = l.environment()
	for name, value := range l.env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return wire.Refuse(wire.CodeInvalid, "%q cannot be an environment variable", name)
		}
	}
	if slices.ContainsFunc(l.argv, func(s string) bool { return strings.Contains(s, "\x00") }) {
		return wire.Refuse(wire.CodeInvalid, "the command has an argument with a zero byte")
	}
	return l.findDir()
}

// findDir settles the working directory. A home that is missing is no fault of
// the one who asks.
func (l *launch) findDir() error {
	l.dir = l.spec.Dir
	if l.dir == "" {
		if l.dir = l.who.Home; !isDir(l.dir) {
			l.dir = "/"
		}
		return nil
	}
	if !filepath.IsAbs(l.dir) || !isDir(l.dir) {
		return wire.Refuse(wire.CodeDir, "the guest has no directory %q", l.dir)
	}
	return nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// environment is what a login would begin with, and what was asked for.
func (l *launch) environment() map[string]string {
	env := map[string]string{
		"HOME": l.who.Home, "USER": l.who.Name, "LOGNAME": l.who.Name, "SHELL": l.who.Shell, "PATH": defaultPath,
	}
	if l.spec.TTY != nil {
		env["TERM"] = "xterm-256color"
	}
	for name, value := range l.spec.Env {
		env[name] = value
	}
	return env
}

// told is the spec for people: without the environment, and cut.
func (l *launch) told() wire.ProcessSpec {
	s := l.spec
	room := wire.MaxCommand
	cut := func(text string) string {
		text = text[:min(len(text), room)]
		room -= len(text)
		return text
	}
	s.Env, s.Argv = nil, nil
	s.Dir, s.User, s.Shell = cut(l.dir), cut(s.User), cut(s.Shell)
	for _, arg := range l.spec.Argv {
		if room == 0 {
			break
		}
		s.Argv = append(s.Argv, cut(arg))
		room = max(0, room-1)
	}
	return s
}

// find returns the file to run, looked up as a shell does.
func (l *launch) find() (string, error) {
	name := l.argv[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	forbidden := false
	for _, dir := range filepath.SplitList(l.env["PATH"]) {
		path := filepath.Join(dir, name)
		if !filepath.IsAbs(path) {
			path = filepath.Join(l.dir, path)
		}
		st, err := os.Stat(path)
		if err != nil || st.IsDir() {
			continue
		}
		if st.Mode()&0o111 != 0 {
			return path, nil
		}
		forbidden = true
	}
	if forbidden {
		return "", &cannotRun{126, name + ": permission denied"}
	}
	return "", &cannotRun{127, name + ": command not found"}
}

// started is what a start leaves in the agent's hands.
type started struct {
	pid      int
	pidfd    *os.File   // nil where the kernel has none
	outputs  []*os.File // stdout and stderr, or the terminal's
	stdin    *os.File   // nil when it is empty
	terminal *os.File   // nil without one
}

// start starts the process. The score with which the kernel looks for a victim
// when memory is short goes from parent to child. The agent never lays its own
// down, not even meanwhile: it would be the largest process of a small guest,
// and starting others is what takes memory.
func (l *launch) start() (*started, error) {
	path, err := l.find()
	if err != nil {
		return nil, err
	}
	files, err := l.open()
	if err != nil {
		return nil, err
	}
	defer files.closeChild()
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: l.dir, Files: files.child(), Env: l.environ(),
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: l.spec.TTY != nil, Credential: l.credential(), PidFD: &pidfd},
	}
	pid, _, err := syscall.StartProcess(path, l.argv, attr)
	if err != nil {
		files.closeOurs()
		return nil, l.explain(err)
	}
	if l.spared {
		unspare(pid)
	}
	s := files.ours
	s.pid = pid
	if pidfd >= 0 {
		s.pidfd = pollable(pidfd, "pidfd")
	}
	return &s, nil
}

// explain tells a command that cannot be run from a guest that cannot run one.
func (l *launch) explain(err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return wire.Refuse(wire.CodeManyProcesses, "the guest cannot start another process: %v", err)
	case errors.Is(err, unix.ENOENT):
		return &cannotRun{127, l.argv[0] + ": no such file or directory"}
	default:
		return &cannotRun{126, fmt.Sprintf("%s: %v", l.argv[0], err)}
	}
}

func (l *launch) environ() []string {
	var env []string
	for name, value := range l.env {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}

// credential is nil for an agent without rights that starts a process as
// itself.
func (l *launch) credential() *syscall.Credential {
	if own := os.Geteuid(); own != 0 && uint32(own) == l.who.UID {
		return nil
	}
	return &syscall.Credential{Uid: l.who.UID, Gid: l.who.GID, Groups: l.who.Groups}
}

// spared reports whether the agent has another score than the usual one.
func spared() bool {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	return err == nil && strings.TrimSpace(string(text)) != "0"
}

// unspare gives a process that has just begun the usual score, and what it may
// have started already. It is best effort: without rights there is nothing to
// take back.
func unspare(pid int) {
	dir := fmt.Sprintf("/proc/%d", pid)
	_ = os.WriteFile(dir+"/oom_score_adj", []byte("0"), 0)
	children, _ := os.ReadFile(fmt.Sprintf("%s/task/%d/children", dir, pid))
	for _, child := range strings.Fields(string(children)) {
		_ = os.WriteFile("/proc/"+child+"/oom_score_adj", []byte("0"), 0)
	}
}
