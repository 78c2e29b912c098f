package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/term"
)

// streams is the surroundings of one run of the program.
type streams struct {
	in       io.Reader
	out, err io.Writer

	inTTY, outTTY, errTTY bool

	env func(name string) string
	now func() time.Time
	raw func() (restore func(), err error) // sets the terminal of in to raw mode

	secret func(ctx context.Context) ([]byte, error) // reads a line from the terminal, which does not show it

	size    func() (width, height int)                     // of the terminal of out, in characters
	resized func() (changed <-chan os.Signal, stop func()) // signals that the size has changed
	signals func() (signals <-chan os.Signal, stop func()) // receives signals for a command in a guest

	browse func(ctx context.Context, url string) // shows a page, if there is a browser
}

func standardStreams() streams {
	isTTY := func(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
	return streams{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		inTTY: isTTY(os.Stdin), outTTY: isTTY(os.Stdout), errTTY: isTTY(os.Stderr),
		env: os.Getenv,
		now: time.Now,
		raw: rawTerminal,

		secret: readSecret,

		size:    terminalSize,
		resized: terminalResized,
		signals: guestSignals,
		browse:  browse,
	}
}

func rawTerminal() (func(), error) {
	fd := int(os.Stdin.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(fd, before) }, nil
}

// readSecret reads a line that the terminal does not show. An interruption restores the
// terminal; the read then ends with the program.
func readSecret(ctx context.Context) ([]byte, error) {
	fd := int(os.Stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	var line []byte
	read := make(chan error, 1)
	go func() {
		var err error
		line, err = term.ReadPassword(fd)
		read <- err
	}()
	select {
	case err := <-read:
		return line, err
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		return nil, errInterrupted
	}
}

// terminalSize returns 80 by 24 if the size is not known.
func terminalSize() (width, height int) {
	width, height, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || width < 1 || height < 2 {
		return 80, 24
	}
	return width, height
}

func terminalResized() (<-chan os.Signal, func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	return changed, func() { signal.Stop(changed) }
}

// signalNames lists the signals that are forwarded to a command in a guest.
var signalNames = map[os.Signal]string{os.Interrupt: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP", syscall.SIGQUIT: "SIGQUIT"}

func guestSignals() (<-chan os.Signal, func()) {
	signal.Ignore(syscall.SIGPIPE) // a closed pipe is an error of the write, which ends the command, too
	got := make(chan os.Signal, 4)
	for s := range signalNames {
		signal.Notify(got, s)
	}
	return got, func() { signal.Stop(got); signal.Reset(syscall.SIGPIPE) }
}

// colour reports whether out may carry escape sequences for colours.
func (s streams) colour() bool {
	if s.env("NO_COLOR") != "" {
		return false
	}
	if force := s.env("CLICOLOR_FORCE"); force != "" && force != "0" {
		return true
	}
	return s.outTTY && s.env("TERM") != "dumb"
}

// browse does nothing on a computer without a desktop.
func browse(ctx context.Context, url string) {
	program := "xdg-open"
	if runtime.GOOS == "darwin" {
		program = "open"
	} else if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return
	}
	_ = exec.CommandContext(ctx, program, url).Run() // the URL is printed in any case
}
