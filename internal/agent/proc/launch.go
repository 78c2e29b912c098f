package proc

import (
	"errors"
	"fmt"
	"maps"
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

// launch is a process before its start.
type launch struct {
	spec     wire.ProcessSpec
	user     account.Account
	resetOOM bool // the agent's out-of-memory score is not the default

	argv []string
	env  map[string]string
	dir  string
}

// cannotRun is the error of a command that a shell could not run.
type cannotRun struct {
	code int // exit code that a shell would have
	text string
}

func (c *cannotRun) Error() string { return c.text }

// Command is a spec resolved in this guest.
type Command struct {
	Path       string
	Argv, Env  []string
	Dir        string
	Credential *syscall.Credential
}

// Resolve returns the command of a spec, for a caller that starts the process itself.
func Resolve(spec wire.ProcessSpec) (*Command, error) {
	user, err := account.Find("/", spec.User)
	if err != nil {
		return nil, err
	}
	l := &launch{spec: spec, user: user}
	if err := l.check(); err != nil {
		return nil, err
	}
	path, err := l.find()
	if err != nil {
		return nil, err
	}
	return &Command{Path: path, Argv: l.argv, Env: l.environ(), Dir: l.dir, Credential: l.credential()}, nil
}

// check validates the spec and sets the fields of l that depend on it.
func (l *launch) check() error {
	l.argv = l.spec.Argv
	if l.spec.Shell != "" {
		l.argv = []string{"/bin/sh", "-c", l.spec.Shell}
	}
	if len(l.argv) == 0 || l.argv[0] == "" {
		return wire.Refuse(wire.CodeInvalid, "the spec has no command")
	}
	l.env = l.environment()
	for name, value := range l.env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return wire.Refuse(wire.CodeInvalid, "%q is not a valid environment variable", name)
		}
	}
	if slices.ContainsFunc(l.argv, func(s string) bool { return strings.Contains(s, "\x00") }) {
		return wire.Refuse(wire.CodeInvalid, "an argument of the command has a zero byte")
	}
	return l.findDir()
}

// findDir sets the working directory. It replaces a missing home directory with /.
func (l *launch) findDir() error {
	l.dir = l.spec.Dir
	if l.dir == "" {
		if l.dir = l.user.Home; !isDir(l.dir) {
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

// environment returns the variables of a login shell, and those of the spec.
func (l *launch) environment() map[string]string {
	env := map[string]string{
		"HOME": l.user.Home, "USER": l.user.Name, "LOGNAME": l.user.Name, "SHELL": l.user.Shell, "PATH": defaultPath,
	}
	if l.spec.TTY != nil {
		env["TERM"] = "xterm-256color"
	}
	maps.Copy(env, l.spec.Env)
	return env
}

// description returns the spec for listings: without the environment, which may have
// secrets, and cut to MaxCommand bytes.
func (l *launch) description() wire.ProcessSpec {
	s := l.spec
	left := wire.MaxCommand
	cut := func(text string) string {
		text = text[:min(len(text), left)]
		left -= len(text)
		return text
	}
	s.Env, s.Argv = nil, nil
	s.Tag, s.Dir, s.User, s.Shell = cut(s.Tag), cut(l.dir), cut(s.User), cut(s.Shell)
	for _, arg := range l.spec.Argv {
		if left == 0 {
			break
		}
		s.Argv = append(s.Argv, cut(arg))
		left = max(0, left-1)
	}
	return s
}

// find returns the path of the command, looked up as in a shell.
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

// started is a started process, with the agent's ends of its files.
type started struct {
	pid      int
	pidfd    *os.File   // nil if the kernel does not support it
	outputs  []*os.File // stdout and stderr, or the terminal's
	stdin    *os.File   // nil if it is empty
	terminal *os.File   // nil if it has pipes
}

// start starts the process. A child inherits the parent's score for the kernel's
// out-of-memory killer, so it is reset after the start. The agent does not reset its
// own before: it may be the largest process of a small guest, and starting a process
// needs memory.
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
		Dir: l.dir, Files: files.childFiles(), Env: l.environ(),
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: l.spec.TTY != nil, Credential: l.credential(), PidFD: &pidfd},
	}
	pid, _, err := syscall.StartProcess(path, l.argv, attr)
	if err != nil {
		files.closeAgent()
		return nil, l.explain(err)
	}
	if l.resetOOM {
		resetOOMScore(pid)
	}
	s := files.agent
	s.pid = pid
	if pidfd >= 0 {
		s.pidfd = pollable(pidfd, "pidfd")
	}
	return &s, nil
}

// explain returns a cannotRun, or a refusal if the guest has too little memory or too
// many processes.
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

// credential returns nil for an unprivileged agent that starts a process as its own
// user.
func (l *launch) credential() *syscall.Credential {
	if own := os.Geteuid(); own != 0 && uint32(own) == l.user.UID {
		return nil
	}
	return &syscall.Credential{Uid: l.user.UID, Gid: l.user.GID, Groups: l.user.Groups}
}

// resetOOMScore resets the out-of-memory score of a process that has just started, and
// of children that it may have started. It ignores errors: the score of an unprivileged
// agent is the default.
func resetOOMScore(pid int) {
	dir := fmt.Sprintf("/proc/%d", pid)
	_ = os.WriteFile(dir+"/oom_score_adj", []byte("0"), 0)
	children, _ := os.ReadFile(fmt.Sprintf("%s/task/%d/children", dir, pid))
	for child := range strings.FieldsSeq(string(children)) {
		_ = os.WriteFile("/proc/"+child+"/oom_score_adj", []byte("0"), 0)
	}
}
