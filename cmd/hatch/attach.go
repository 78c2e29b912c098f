package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// attachment says how to attach to a command.
type attachment struct {
	interactive bool // pass stdin on
	tty         bool // and set the terminal to raw mode
	owned       bool // the command is ours: it ends if its output cannot be written
}

// attach connects stdin, stdout and stderr to a command and returns its exit code.
func (c execCommands) attach(ctx context.Context, how attachment, open func(context.Context) (*client.ExecSession, error)) error {
	signals, stopSignals := c.signals() // from here on signals are for the command
	defer stopSignals()
	resized, stopResized := c.resized()
	defer stopResized()
	sessionCtx, detach := context.WithCancel(context.WithoutCancel(ctx))
	defer detach()
	stop := context.AfterFunc(ctx, detach)
	session, err := open(sessionCtx)
	stop()
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	restore := func() {}
	if how.interactive && how.tty && c.inTTY {
		if restore, err = c.raw(); err != nil {
			return fmt.Errorf("cannot set the terminal up: %w", err)
		}
	}
	forward := &forwarder{terminal: c.terminal, session: session, signals: signals, detach: detach}
	if how.tty {
		forward.resized = resized
	}
	forwarded := make(chan struct{})
	go func() {
		defer close(forwarded)
		forward.run(sessionCtx)
	}()
	inputErr := make(chan error, 1)
	if how.interactive {
		go func() { // a read of stdin cannot be interrupted; the goroutine ends with the program
			if err := sendInput(session, c.in); err != nil {
				inputErr <- err
				detach() // else the command would go on with part of its input
			}
		}()
	}
	out, errOut := &output{w: c.out}, &output{w: c.err}
	exit, err := session.Copy(out, errOut)
	broken := cmp.Or(out.err, errOut.err)
	switch {
	case broken == nil:
	case how.owned:
		exit, err = c.breakPipe(sessionCtx, session)
	default:
		exit, err = client.ExecExit{Code: exitPipe}, nil
	}
	restore()
	detach()
	<-forwarded
	select {
	case lost := <-inputErr:
		err = fmt.Errorf("it was left running without the rest of its input: %w", lost)
	default:
	}
	if broken != nil && err == nil && !errors.Is(broken, syscall.EPIPE) {
		return fmt.Errorf("its output cannot be written: %w", broken)
	}
	if forward.detached {
		err = errors.New("it was left running")
	}
	return c.exit(session, exit, err)
}

// output writes the output of a command. It is a pipe in the caller's shell, so an
// error is not that of the session.
type output struct {
	w   io.Writer
	err error
}

// Write writes, and keeps the error.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.err = err
	return n, err
}

// exitPipe is the exit code of a program that SIGPIPE has ended.
const exitPipe = 128 + int(syscall.SIGPIPE)

// How long a command may go on after SIGPIPE, and after SIGKILL.
const (
	pipeTimeout = 5 * time.Second
	killTimeout = 10 * time.Second
)

// breakPipe ends a command whose output cannot be written, as the end of a pipe's
// reader ends a local one, and waits for it.
func (c execCommands) breakPipe(ctx context.Context, session *client.ExecSession) (client.ExecExit, error) {
	ctx, cancel := context.WithTimeout(ctx, pipeTimeout+killTimeout)
	defer cancel()
	kill := time.AfterFunc(pipeTimeout, func() { _ = session.Signal(ctx, "SIGKILL") })
	defer kill.Stop()
	leave := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer leave()
	if err := session.Signal(ctx, "SIGPIPE"); err != nil && !client.IsConflict(err) && !client.IsNotFound(err) { // it has ended
		return client.ExecExit{}, err
	}
	exit, err := session.Copy(io.Discard, io.Discard)
	if _, isLost := errors.AsType[*client.LostError](err); isLost {
		err = nil // there is no reader to miss it
	}
	return exit, err
}

// exit reports how a command has ended and returns its exit code.
func (c execCommands) exit(session *client.ExecSession, exit client.ExecExit, err error) error {
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

// sendInput passes in on to a command until it ends or the command closes stdin.
func sendInput(session *client.ExecSession, in io.Reader) error {
	_, err := io.Copy(session, in)
	if err == nil {
		err = session.CloseStdin()
	}
	if errors.Is(err, client.ErrStdinClosed) {
		return nil
	}
	return err
}

// forwarder passes signals and terminal sizes on to a command.
type forwarder struct {
	terminal func() api.TerminalSize
	session  *client.ExecSession
	signals  <-chan os.Signal
	resized  <-chan os.Signal // nil without a terminal
	detach   context.CancelFunc
	detached bool // by the user
}

// maxInterrupts is the number of interrupts that are passed on; the next one
// detaches.
const maxInterrupts = 2

// forwardTimeout bounds the request that passes a signal on.
const forwardTimeout = 10 * time.Second

func (f *forwarder) run(ctx context.Context) {
	interrupts := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.resized:
			f.try(ctx, func(ctx context.Context) error { return f.session.Resize(ctx, f.terminal()) })
		case got := <-f.signals:
			if got == os.Interrupt {
				interrupts++
			}
			if interrupts > maxInterrupts {
				f.detached = true
				f.detach()
				return
			}
			f.try(ctx, func(ctx context.Context) error { return f.session.Signal(ctx, signalNames[got]) })
		}
	}
}

// try sends a request and ignores its error, which would spoil the screen: the
// command has ended, or the user tries again.
func (f *forwarder) try(ctx context.Context, send func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	_ = send(ctx)
}
