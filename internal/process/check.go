package process

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/errs"
)

// Limits of a [Spec], besides [MaxSpec].
const (
	MaxArgs    = 1024 // entries of Argv, and of Env
	MaxDir     = 4096 // bytes
	MaxTag     = 256  // bytes
	MaxTimeout = 30 * 24 * time.Hour
)

// check refuses what no guest can run. Its errors name the fields of the API.
func (s Spec) check() error {
	for _, check := range []func() error{s.checkCommand, s.checkEnv, s.checkPlace, s.checkSize} {
		if err := check(); err != nil {
			return err
		}
	}
	if s.Timeout < 0 || s.Timeout > MaxTimeout {
		return errs.InvalidField("timeout_ms", "must be 0 (no timeout) to %d", MaxTimeout.Milliseconds())
	}
	if len(s.Tag) > MaxTag || hasNUL(s.Tag) || !utf8.ValidString(s.Tag) {
		return errs.InvalidField("tag", "%q is not a text of up to %d bytes without NUL", errs.Brief(s.Tag), MaxTag)
	}
	if s.TTY != nil {
		return s.TTY.check()
	}
	return nil
}

func (s Spec) checkCommand() error {
	switch {
	case s.Shell == "" && (len(s.Argv) == 0 || s.Argv[0] == ""):
		return errs.InvalidField("command", "there is nothing to run").
			WithHint(`give a line for the shell, or a program and its arguments: ["ls", "-l"]`)
	case s.Shell != "" && len(s.Argv) > 0:
		return errs.InvalidField("command", "both a line for the shell and a program were given")
	case len(s.Argv) > MaxArgs:
		return errs.InvalidField("command", "has %d words; the limit is %d", len(s.Argv), MaxArgs)
	case hasNUL(s.Shell) || slices.ContainsFunc(s.Argv, hasNUL):
		return errs.InvalidField("command", "has a NUL byte, which no argument can have")
	}
	return nil
}

func (s Spec) checkEnv() error {
	if len(s.Env) > MaxArgs {
		return errs.InvalidField("env", "has %d variables; the limit is %d", len(s.Env), MaxArgs)
	}
	for name, value := range s.Env {
		if name == "" || strings.Contains(name, "=") || hasNUL(name) {
			return errs.InvalidField("env", "%q is not the name of a variable", errs.Brief(name))
		}
		if hasNUL(value) { // the error must not show it: it may be a secret
			return errs.InvalidField("env", "the value of %q has a NUL byte, which no variable can have", errs.Brief(name))
		}
	}
	return nil
}

var userForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@$-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.@$-]{0,63})?$`)

func (s Spec) checkPlace() error {
	if s.Dir != "" && (s.Dir[0] != '/' || len(s.Dir) > MaxDir || hasNUL(s.Dir)) {
		return errs.InvalidField("cwd", "%q is not an absolute path of up to %d bytes", errs.Brief(s.Dir), MaxDir)
	}
	if s.User != "" && !userForm.MatchString(s.User) {
		return errs.InvalidField("user", "%q is not a user: a name or number, optionally with :GROUP", errs.Brief(s.User))
	}
	return nil
}

func (s Spec) checkSize() error {
	size := len(s.Shell) + len(s.Dir) + len(s.User) + 3
	for _, word := range s.Argv {
		size += len(word) + 1
	}
	for name, value := range s.Env {
		size += len(name) + len(value) + 2
	}
	if size > MaxSpec {
		return errs.InvalidField("command", "is %d bytes with its environment; the limit is %d", size, MaxSpec).
			WithHint("send long input through stdin, or as a file")
	}
	return nil
}

func (s Size) check() error {
	if s.Rows == 0 || s.Cols == 0 {
		return errs.InvalidField("tty", "rows and cols must be at least 1")
	}
	return nil
}

// signals are Linux's signals, by number.
var signals = []string{
	"", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
	"STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
}

// signalName returns a signal such as TERM, sigterm or 15 as SIGTERM.
func signalName(given string) (string, error) {
	name := strings.TrimPrefix(strings.ToUpper(given), "SIG")
	if n, err := strconv.Atoi(given); err == nil && n > 0 && n < len(signals) {
		name = signals[n]
	}
	if name == "" || !slices.Contains(signals, name) {
		return "", errs.InvalidField("signal", "%q is not a signal, such as TERM, KILL or 15", errs.Brief(given))
	}
	return "SIG" + name, nil
}

func hasNUL(s string) bool { return strings.Contains(s, "\x00") }
