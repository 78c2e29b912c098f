package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// execFlags say how to run a command.
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
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set `KEY=VALUE`, or KEY as it is here (repeatable)")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "set what `file` says, a line each (repeatable)")
	flags.DurationVar(&f.timeout, "timeout", 0, "kill the command, and all it started, after this `time`")
	flags.SetInterspersed(false) // what follows the VM is the guest's
}

func (c *cli) execCommand() *cobra.Command {
	f := &execFlags{}
	cmd := &cobra.Command{
		Use: "exec [flags] VM COMMAND [ARG...]", Short: "Run a command in a VM", Args: someArgs("VM and command"),
		Long: `Run a command in a running VM and exit with its code. It needs no network, SSH
server or login in the VM. The words of the command are passed on as they are;
sh -c runs a line.

Ctrl-C is passed on; the third one leaves the command running. When the
connection breaks, hatch attaches again and goes on where it was. hatch execs
lists what runs, also after this ends.

The exit code is the command's: 127 when it is not found, 126 when it cannot be
run, 128+N when signal N ended it. hatch itself fails with 125.`,
		Example: "  hatch exec web uname -a\n  hatch exec -it web bash\n  hatch exec web sh -c 'ps aux | grep sshd'\n" +
			"  pg_dump app | hatch exec -i db psql app\n  hatch exec -d web /usr/local/bin/backup",
		ValidArgsFunction: c.completeVMFirst,
		RunE: func(cmd *cobra.Command, args []string) error {
			command := withoutDash(args[1:])
			if len(command) == 0 {
				return usage(cmd, "%s takes a VM and a command", cmd.CommandPath())
			}
			if f.tty && f.interactive && !c.inTTY && !f.detach {
				return usage(cmd, "-t with -i needs a terminal, and stdin is none")
			}
			if err := c.exec(cmd.Context(), args[0], command, f); err != nil {
				return inWords(err, "cannot run a command in "+args[0])
			}
			return nil
		},
	}
	f.add(cmd)
	return cmd
}

// inWords says what could not be done, unless err is an exit code.
func inWords(err error, what string) error {
	var exit exitError
	if errors.As(err, &exit) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c *cli) exec(ctx context.Context, ref string, command []string, f *execFlags) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	body, err := c.execBody(command, f)
	if err != nil {
		return err
	}
	v, err := findVM(ctx, server, ref)
	if err != nil {
		return err
	}
	c.awaitAgent(ctx, server, v)
	if f.detach {
		started, err := server.StartExec(ctx, v.ID, body)
		if err != nil {
			return err
		}
		return c.printOne(started, func() { fmt.Fprintln(c.out, started.ID) })
	}
	return c.attachTo(ctx, execView{interactive: f.interactive, tty: f.tty}, func(ctx context.Context) (*client.ExecSession, error) {
		return server.OpenExec(ctx, v.ID, body)
	})
}

func (c *cli) execBody(command []string, f *execFlags) (api.RunExec, error) {
	env, err := c.execEnv(f)
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

func (c *cli) terminal() api.TerminalSize {
	cols, rows := c.size()
	return api.TerminalSize{Rows: rows, Cols: cols}
}

// execEnv returns what --env-file and, over it, -e say. A terminal's kind goes
// with it.
func (c *cli) execEnv(f *execFlags) (map[string]string, error) {
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

// setEnv sets KEY=VALUE, or KEY as it is here, if it is.
func (c *cli) setEnv(env map[string]string, given string) error {
	name, value, hasValue := strings.Cut(given, "=")
	if name == "" || strings.ContainsAny(name, " \t") {
		return fmt.Errorf("there is no name of a variable before = in %q", given)
	}
	if !hasValue {
		if value = c.env(name); value == "" {
			return nil
		}
	}
	env[name] = value
	return nil
}

// Bounds on waiting for the agent of a VM that boots.
const (
	bootTime      = 5 * time.Minute
	agentPatience = time.Minute
)

// awaitAgent waits for the agent of a VM that was started lately. What it waits
// for in vain, the command itself will tell.
func (c *cli) awaitAgent(ctx context.Context, server *client.Client, v api.VM) {
	if v.State != api.StateRunning || v.StartedAt == nil || c.now().Sub(*v.StartedAt) > bootTime {
		return
	}
	for _, condition := range v.Conditions {
		if condition.Type == api.ConditionAgentReady && condition.Status != api.StatusUnknown {
			return // it is there, or was
		}
	}
	end := c.progress("waiting for " + displayName(v) + " to boot")
	defer end()
	_, _ = server.WaitVM(ctx, v.ID, "agent", agentPatience)
}

// execView is how a command is shown.
type execView struct{ interactive, tty bool }

// attachTo joins our streams with a command, and ends with its exit code.
func (c *cli) attachTo(ctx context.Context, view execView, open func(context.Context) (*client.ExecSession, error)) error {
	signals, stopSignals := c.signals() // those from here on are the command's
	defer stopSignals()
	resized, stopResized := c.resized()
	defer stopResized()
	own, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	stop := context.AfterFunc(ctx, leave)
	session, err := open(own)
	stop()
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	restore := func() {}
	if view.interactive && view.tty && c.inTTY {
		if restore, err = c.raw(); err != nil {
			return fmt.Errorf("cannot set the terminal up: %w", err)
		}
	}
	steer := &steering{c: c, session: session, signals: signals, leave: leave}
	if view.tty {
		steer.resized = resized
	}
	steering := make(chan struct{})
	go func() {
		defer close(steering)
		steer.run(own)
	}()
	inputLost := make(chan error, 1)
	if view.interactive {
		go func() { // a reader of stdin cannot be interrupted; it ends with the program
			if err := c.feed(session); err != nil {
				inputLost <- err
				leave() // to go on, or to end stdin, would make it run on half of its input
			}
		}()
	}
	exit, err := session.Copy(c.out, c.err)
	restore()
	leave()
	<-steering
	select {
	case lost := <-inputLost:
		err = fmt.Errorf("it was left running without the rest of its input: %w", lost)
	default:
	}
	if steer.left {
		err = errors.New("it was left running")
	}
	return c.execEnd(session, exit, err)
}

func (c *cli) execEnd(session *client.ExecSession, exit client.ExecExit, err error) error {
	var lost *client.LostError
	if err != nil && !errors.As(err, &lost) {
		return hint(err, "hatch execs --help says how to find %s again", session.Exec().ID)
	}
	if lost != nil {
		fmt.Fprintf(c.err, "hatch: %s\n", lost)
	}
	if exit.TimedOut {
		fmt.Fprintln(c.err, "hatch: the command was killed: its --timeout passed")
	}
	return exitFrom(exit.Code)
}

// feed passes stdin on, until it ends or the command reads no more.
func (c *cli) feed(session *client.ExecSession) error {
	_, err := io.Copy(session, c.in)
	if err == nil {
		err = session.CloseStdin()
	}
	if errors.Is(err, client.ErrStdinClosed) {
		return nil
	}
	return err
}

// steering passes signals and sizes on while a command is shown.
type steering struct {
	c       *cli
	session *client.ExecSession
	signals <-chan os.Signal
	resized <-chan os.Signal // nil without a terminal
	leave   context.CancelFunc
	left    bool // the user has had enough
}

// patientInterrupts is how many interrupts are passed on; the next one leaves.
const patientInterrupts = 2

// steerTimeout bounds how long a signal may be under way.
const steerTimeout = 10 * time.Second

func (s *steering) run(ctx context.Context) {
	interrupts := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.resized:
			s.tell(ctx, func(ctx context.Context) error { return s.session.Resize(ctx, s.c.terminal()) })
		case got := <-s.signals:
			if got == os.Interrupt {
				interrupts++
			}
			if interrupts > patientInterrupts {
				s.left = true
				s.leave()
				return
			}
			s.tell(ctx, func(ctx context.Context) error { return s.session.Signal(ctx, signalNames[got]) })
		}
	}
}

// tell does one thing. What fails has no place on the screen: the command has
// ended, or the user will try again.
func (s *steering) tell(ctx context.Context, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, steerTimeout)
	defer cancel()
	_ = do(ctx)
}
