package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// execFlags are the flags of exec.
type execFlags struct {
	interactive, tty, detach bool
	user, dir                string
	env, envFiles            []string
	timeout                  time.Duration
}

func (f *execFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass stdin on")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	flags.BoolVarP(&f.detach, "detach", "d", false, "print the exec's id and leave it running")
	flags.StringVarP(&f.user, "user", "u", "", "run as `user`: NAME or UID, optionally with :GROUP (default root)")
	flags.StringVarP(&f.dir, "workdir", "w", "", "run in this `directory` (default the user's home)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set `KEY=VALUE`, or KEY to its value here (repeatable)")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "set the variables in `file`, one per line (repeatable)")
	flags.DurationVar(&f.timeout, "timeout", 0, "kill the command, and its children, after this `time`")
	flags.SetInterspersed(false) // flags after the VM belong to the command
}

// execCommands are hatch exec and execs.
type execCommands struct {
	*printer
	*connection
}

func (c execCommands) exec() *cobra.Command {
	f := &execFlags{}
	cmd := &cobra.Command{
		Use: "exec [flags] VM COMMAND [ARG...]", Annotations: exitsAsGuest(), Short: "Run a command in a VM", Args: someArgs("VM and command"),
		Long: `Run a command in a running VM and exit with its code. The VM needs no network, SSH
server or login. The arguments are passed on unchanged; sh -c runs a shell line.

Ctrl-C is passed on; the third one leaves the command running. If the connection
breaks, hatch attaches again and continues with the next output. hatch execs
lists running commands, also after this one has ended. If the reader of the output
goes away, as in hatch exec web yes | head, the command gets SIGPIPE, as in a local
pipe, and is killed 5 seconds later.

Command, environment, directory and user have up to 120 KiB together.

The exit code is the command's: 127 if it was not found, 126 if it could not be
run, 128+N if signal N ended it. hatch's own errors have exit code 125.`,
		Example: "  hatch exec web uname -a\n  hatch exec -it web bash\n  hatch exec web sh -c 'ps aux | grep sshd'\n" +
			"  pg_dump app | hatch exec -i db psql app\n  hatch exec -d web /usr/local/bin/backup",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			command := withoutDash(args[1:])
			if len(command) == 0 {
				return usage(cmd, "%s takes a VM and a command", cmd.CommandPath())
			}
			if f.tty && f.interactive && !c.inTTY && !f.detach {
				return usage(cmd, "-t with -i needs a terminal, and stdin is not one")
			}
			return withContext(c.run(cmd.Context(), args[0], command, f), "cannot run a command in "+args[0])
		},
	}
	f.add(cmd)
	return cmd
}

// withContext adds what failed to an error that is not an exit code.
func withContext(err error, what string) error {
	var exit exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c execCommands) run(ctx context.Context, ref string, command []string, f *execFlags) error {
	body, err := c.body(command, f)
	if err != nil {
		return err
	}
	server, v, err := c.openVM(ctx, ref)
	if err != nil {
		return err
	}
	c.awaitAgent(ctx, server, v)
	if f.detach {
		started, err := server.StartExec(ctx, v.ID, body)
		if err != nil {
			return err
		}
		return c.printLine(started, started.ID)
	}
	return c.attach(ctx, attachment{interactive: f.interactive, tty: f.tty, owned: true}, func(ctx context.Context) (*client.ExecSession, error) {
		return server.OpenExec(ctx, v.ID, body)
	})
}

func (c execCommands) body(command []string, f *execFlags) (api.RunExec, error) {
	env, err := c.environment(f)
	body := api.RunExec{
		Command: api.Command{Argv: command}, Env: env, Cwd: f.dir, User: f.user,
		StdinOpen: f.interactive, TimeoutMS: f.timeout.Milliseconds(),
	}
	if f.timeout > 0 && body.TimeoutMS == 0 || f.timeout < 0 {
		return body, fmt.Errorf("--timeout takes a millisecond or more, such as 30s, not %s", f.timeout)
	}
	if f.tty {
		size := c.terminal()
		body.TTY = &size
	}
	return body, err
}

func (c execCommands) terminal() api.TerminalSize {
	cols, rows := c.size()
	return api.TerminalSize{Rows: rows, Cols: cols}
}

// environment returns the variables of --env-file and, overriding them, -e. A
// command with a terminal also gets TERM.
func (c execCommands) environment(f *execFlags) (map[string]string, error) {
	env := map[string]string{}
	if term := c.env("TERM"); f.tty && term != "" {
		env["TERM"] = term
	}
	for _, file := range f.envFiles {
		text, err := c.readInput(file)
		if err != nil {
			return nil, fmt.Errorf("cannot read the environment: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\r\n")
			if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if err := c.setEnv(env, line); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	for _, given := range f.env {
		if err := c.setEnv(env, given); err != nil {
			return nil, fmt.Errorf("--env: %w", err)
		}
	}
	return env, nil
}

// setEnv sets KEY=VALUE, or KEY to its value here, if it has one.
func (c execCommands) setEnv(env map[string]string, given string) error {
	name, value, hasValue := strings.Cut(given, "=")
	if name == "" || strings.ContainsAny(name, " \t") {
		return fmt.Errorf("%q does not begin with the name of a variable", given)
	}
	if !hasValue {
		if value = c.env(name); value == "" {
			return nil
		}
	}
	env[name] = value
	return nil
}

// Bounds on waiting for the agent of a booting VM.
const (
	bootTimeout  = 5 * time.Minute
	agentTimeout = time.Minute
)

// awaitAgent waits for the agent of a VM that was started less than bootTimeout
// ago. If the agent does not answer, the command itself fails and says so.
func (c execCommands) awaitAgent(ctx context.Context, server *client.Client, v api.VM) {
	if v.State != api.StateRunning || v.StartedAt == nil || c.now().Sub(v.StartedAt.Time) > bootTimeout {
		return
	}
	for _, condition := range v.Conditions {
		if condition.Type == api.ConditionAgentReady && condition.Status != api.StatusUnknown {
			return // the agent has answered since the start
		}
	}
	defer c.progress("waiting for " + displayName(v) + " to boot")()
	_, _ = server.WaitVM(ctx, v.ID, "agent", agentTimeout)
}
