package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// Exit codes of hatch's own errors. Commands that pass on the exit code of a
// command in a guest only have exitOwn, as docker has: such a command rarely has
// it, but may have any of the others.
const (
	exitUsage       = 2
	exitNotFound    = 3
	exitAuth        = 4
	exitUnreachable = 5
	exitTimeout     = 124 // as that of timeout(1)
	exitOwn         = 125 // any other error
	exitInterrupted = 130 // as a shell's, for SIGINT
)

const exitCodes = `Exit codes: 0 done; 2 an error in the command line; 3 an object does not exist;
4 the API key is missing or not valid; 5 the server cannot be reached; 124 a wait
has timed out; 125 any other error; 130 interrupted. hatch exec, hatch execs
attach, hatch ssh and hatch run exit with the code of the command in the guest,
and with 125 for all errors of hatch. With -o json, errors on stderr are JSON:
"code" is the API's error code, or usage, unreachable, timeout, interrupted or
cli_error.`

// guestExit is the annotation of commands that exit with the code of a command in
// a guest.
const guestExit = "guest-exit"

func exitsAsGuest() map[string]string { return map[string]string{guestExit: "true"} }

// errInterrupted is the error of a command line that a signal ended.
var errInterrupted = errors.New("interrupted")

// exitError ends the program with this code; the error is reported already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// hinted is an error with advice.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// hint adds advice to an error.
func hint(err error, format string, args ...any) error {
	return hinted{err, fmt.Sprintf(format, args...)}
}

// usageError is an error in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// usage returns an error in the command line.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return hint(usageError{fmt.Errorf(format, args...)}, "%s --help", cmd.CommandPath())
}

// classify returns the exit code of an error of hatch, and the code of those that
// the server has not sent.
func classify(err error) (exit int, code string) {
	missing, isAbsent := errors.AsType[absent](err)
	_, isUsage := errors.AsType[usageError](err)
	switch {
	case errors.Is(err, errInterrupted):
		return exitInterrupted, "interrupted"
	case isUsage:
		return exitUsage, "usage"
	case isAbsent:
		return exitNotFound, strings.ToLower(missing.noun) + "_not_found"
	case client.IsNotFound(err):
		return exitNotFound, ownCode
	case client.IsUnauthenticated(err):
		return exitAuth, ownCode
	case client.IsTimeout(err), errors.Is(err, context.DeadlineExceeded), client.IsUnanswered(err):
		return exitTimeout, "timeout"
	case client.IsUnreachable(err):
		return exitUnreachable, "unreachable"
	}
	return exitOwn, ownCode
}

const ownCode = "cli_error"

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usage(cmd, "%s takes no arguments; %q was given", cmd.CommandPath(), args[0])
	}
	cmd.SuggestionsMinimumDistance = 2 // letters
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		off := func(name string) int { n := len(name) - len(args[0]); return n * n }
		likely := slices.MinFunc(near, func(a, b string) int { return off(a) - off(b) })
		return hint(usageError{fmt.Errorf("there is no command %q", args[0])}, "did you mean %s %s?", cmd.CommandPath(), likely)
	}
	return usage(cmd, "there is no command %q", args[0])
}

// oneArg, upToOneArg and someArgs require arguments; what is their name.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usage(cmd, "%s takes one %s; %d were given", cmd.CommandPath(), what, len(args))
		}
		return nil
	}
}

func upToOneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usage(cmd, "%s takes one %s at most; %d were given", cmd.CommandPath(), what, len(args))
		}
		return nil
	}
}

func someArgs(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(cmd, "%s takes at least one %s", cmd.CommandPath(), what)
		}
		return nil
	}
}

// problemOf returns any error in the API's form: the server's own problem if it
// sent one, with our context before its sentence.
func problemOf(err error) api.Problem {
	p := api.Problem{Title: "Command failed", Error: err.Error()}
	if server, ok := errors.AsType[*client.Error](err); ok {
		p = server.Problem
		if prefix, ours := strings.CutSuffix(err.Error(), server.Error()); ours { // which has its hint in parentheses
			p.Error = prefix + server.Problem.Error
		} else {
			p.Error = err.Error()
		}
		if p.Status == http.StatusUnauthorized {
			p.Hint = keyHint
		}
	}
	if p.Code == "" {
		_, p.Code = classify(err)
	}
	if h, ok := errors.AsType[hinted](err); ok {
		p.Hint = h.hint
	}
	if p.VMID != "" {
		p.Hint = strings.TrimPrefix(p.Hint+"; hatch why "+p.VMID+" says more, hatch rm "+p.VMID+" removes it", "; ")
	}
	if errors.Is(err, context.DeadlineExceeded) && p.Hint == "" {
		p.Hint = "check that hatchd answers: hatch health"
	}
	return p
}

// report writes an error to stderr.
func (p *printer) report(err error) {
	problem := problemOf(err)
	if !p.plainErrors && (p.format == formatJSON || p.format == formatJSONL) {
		_ = writeJSON(p.err, problem, p.format == formatJSON)
		return
	}
	fmt.Fprintf(p.err, "hatch: %s\n", clean(problem.Error))
	for _, f := range problem.Errors {
		if len(problem.Errors) > 1 {
			fmt.Fprintf(p.err, "  %s: %s\n", clean(f.Location), clean(f.Message))
		}
	}
	if problem.Hint != "" {
		fmt.Fprintf(p.err, "hint: %s\n", clean(problem.Hint))
	}
	if problem.Status >= http.StatusInternalServerError && problem.RequestID != "" {
		fmt.Fprintf(p.err, "request: %s\n", clean(problem.RequestID))
	}
}
