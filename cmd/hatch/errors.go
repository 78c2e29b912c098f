package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// exitOwn is the exit code of hatch's own errors, as docker's: a command in a
// guest rarely has it.
const exitOwn = 125

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

// usage is an error in the command line.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return hint(fmt.Errorf(format, args...), "%s --help", cmd.CommandPath())
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usage(cmd, "%s takes no arguments; %q was given", cmd.CommandPath(), args[0])
	}
	cmd.SuggestionsMinimumDistance = 2 // letters
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return hint(fmt.Errorf("there is no command %q", args[0]), "did you mean %s %s?", cmd.CommandPath(), near[0])
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
	p := api.Problem{Title: "Command failed", Code: "cli_error", Error: err.Error()}
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
	if h, ok := errors.AsType[hinted](err); ok {
		p.Hint = h.hint
	}
	if errors.Is(err, context.DeadlineExceeded) && p.Hint == "" {
		p.Hint = "check that hatchd answers: hatch health"
	}
	return p
}

// report writes an error to stderr.
func (p *printer) report(err error) {
	problem := problemOf(err)
	if p.format == formatJSON || p.format == formatJSONL {
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
