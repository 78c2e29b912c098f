package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// exitOwn is the exit code of our own failures, as docker has it, so that they
// are told from those of a command in a guest.
const exitOwn = 125

// exitError ends the program with this code; everything has been said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// hinted is an error that says what to do.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// hint adds what to do to an error.
func hint(err error, format string, args ...any) error {
	return hinted{err, fmt.Sprintf(format, args...)}
}

// usage is a fault of the command line.
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

// oneArg and someArgs ask for arguments by name.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usage(cmd, "%s takes one %s; %d were given", cmd.CommandPath(), what, len(args))
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

// problemOf turns any error into the API's form: the server's own where it
// spoke, with what we were doing in front of its sentence.
func (c *cli) problemOf(err error) api.Problem {
	p := api.Problem{Title: "Command failed", Code: "cli_error", Error: err.Error()}
	var server *client.Error
	if errors.As(err, &server) {
		p = server.Problem
		p.Error = withoutHint(err, server)
		if p.Status == http.StatusUnauthorized {
			p.Hint = keyHint
		}
	}
	var h hinted
	if errors.As(err, &h) {
		p.Hint = h.hint
	}
	if errors.Is(err, context.DeadlineExceeded) && p.Hint == "" {
		p.Hint = "look whether hatchd answers: hatch health"
	}
	return p
}

// withoutHint is the error's text with the server's sentence alone in the
// place of its sentence and hint.
func withoutHint(err error, server *client.Error) string {
	text, tail := err.Error(), server.Error()
	if len(text) < len(tail) || text[len(text)-len(tail):] != tail {
		return text
	}
	return text[:len(text)-len(tail)] + server.Problem.Error
}

// report says on stderr what failed.
func (c *cli) report(err error) {
	p := c.problemOf(err)
	if c.format == formatJSON || c.format == formatJSONL {
		_ = writeJSON(c.err, p, c.format == formatJSON)
		return
	}
	fmt.Fprintf(c.err, "hatch: %s\n", clean(p.Error))
	for _, f := range p.Errors {
		if len(p.Errors) > 1 {
			fmt.Fprintf(c.err, "  %s: %s\n", clean(f.Location), clean(f.Message))
		}
	}
	if p.Hint != "" {
		fmt.Fprintf(c.err, "hint: %s\n", clean(p.Hint))
	}
	if p.Status >= http.StatusInternalServerError && p.RequestID != "" {
		fmt.Fprintf(c.err, "request: %s\n", clean(p.RequestID))
	}
}
