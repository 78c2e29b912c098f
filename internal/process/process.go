// Package process is work inside a guest: programs that are started, watched,
// fed and ended through the guest's agent, with or without a network in it.
//
// A process is an object of its guest, not of a connection: it is found again
// by its id after a client, or hatchd itself, has gone and come back. The
// package knows no HTTP and no wire protocol; doors stand on [Service], and
// internal/guest supplies [Guest]. Start at [Service].
package process

import (
	"context"
	"time"
)

// MaxSpec bounds what a [Spec] says: bytes of Argv or Shell, Env, Dir and User
// together, each entry counted with one more. It is a little less than what
// Linux takes as one argument; a [Guest] takes all of it, whatever the bytes.
const MaxSpec = 120 << 10

// Spec says what to run.
type Spec struct {
	Argv    []string          // program and arguments; looked up in the guest's PATH when it has no slash
	Shell   string            // instead of Argv: a line for /bin/sh -c
	Env     map[string]string // on top of the guest's defaults
	Dir     string            // absolute; "" means the user's home
	User    string            // NAME or UID, optionally :GROUP; "" means root
	TTY     *Size             // nil: pipes; stdout and stderr are apart
	Stdin   bool              // stdin stays open until it is closed; else it is empty
	Timeout time.Duration     // after which the process group is killed; 0 means none
}

// Size is a terminal's, in characters; both at least 1.
type Size struct {
	Rows, Cols uint16
}

// State of a process.
type State string

// The states.
const (
	Running State = "running"
	Exited  State = "exited"
)

// Process is one process that was started, running or ended. An ended one is
// kept until it is removed, or until the guest needs the room.
type Process struct {
	ID        string // exec_ and lower-case letters and digits; unique in its guest
	PID       int    // in the guest
	Spec      Spec   // without Env, which may hold secrets
	State     State
	StartedAt time.Time // by the guest's clock
	Exit      *Exit     // nil while it runs
	Output    int64     // bytes of stdout and stderr so far
}

// Exit tells how a process ended.
type Exit struct {
	Code     int    // as a shell has it: 128+N for signal N, 127 not found, 126 not to be run
	Signal   string // such as SIGKILL; "" when it exited by itself
	TimedOut bool   // the timeout ended it
	At       time.Time
}

// Channel names one of a process's output streams.
type Channel string

// The channels. With a terminal everything is Stdout.
const (
	Stdout Channel = "stdout"
	Stderr Channel = "stderr"
)

// Chunk is the next thing an attached reader gets: exactly one of output
// (Data), a gap (Lost) and the end (Exit).
type Chunk struct {
	Channel Channel
	Data    []byte // valid until the next call
	Offset  int64  // of what follows this chunk, in bytes of all output; attach from here again
	Lost    int64  // bytes that are not kept any more, instead of data
	Exit    *Exit  // the process has ended and all its output was given
}

// Stream is one reader, and writer, of a process. Read and Write sides may be
// used by one goroutine each. As long as it is attached the process waits for a
// reader that is behind, as it would for a pipe's.
type Stream interface {
	// Process tells what was attached to, as of then.
	Process() Process

	// Next waits for the next chunk. After the one with Exit it returns io.EOF.
	// Errors: errs.Unavailable with code agent_unavailable when the guest is
	// lost, with code detached when nobody took output for half a minute. The
	// process may go on.
	Next() (Chunk, error)

	// Write writes to stdin, and waits while the process does not read.
	// Errors: errs.Conflict with code stdin_closed.
	Write(p []byte) (int, error)

	// CloseStdin ends stdin after what was written. On a terminal it types ctrl-D.
	CloseStdin() error

	// Signal sends a signal, such as SIGTERM or TERM, to the process group.
	Signal(name string) error

	// Resize changes the terminal's size. Without a terminal it is an error.
	Resize(Size) error

	// Close lets go; the process goes on. A Next or Write under way ends.
	Close() error
}

// Guest is what one guest's agent can do with processes. Every method returns
// errs.Unavailable with code agent_unavailable when the agent does not answer
// in bounded time, and errs.Unsupported with code agent_too_old when it does
// not know the operation.
type Guest interface {
	// Exec starts a process and attaches to it at its first byte. A program that
	// cannot be run is no error: it exits with 127 or 126, and says why on
	// stderr, as a shell does. When ctx is done the stream breaks.
	// Errors: errs.Invalid for a user or directory that the guest does not have;
	// errs.Exhausted with code too_many_processes.
	Exec(ctx context.Context, spec Spec) (Stream, error)

	// StartProcess starts a process that nobody is attached to.
	StartProcess(ctx context.Context, spec Spec) (Process, error)

	// Attach joins a process's output at offset from; 0 is its beginning.
	// Errors: errs.NotFound with code process_not_found.
	Attach(ctx context.Context, id string, from int64) (Stream, error)

	// Processes lists all, the newest first.
	Processes(ctx context.Context) ([]Process, error)

	// Process returns one. Errors: errs.NotFound.
	Process(ctx context.Context, id string) (Process, error)

	// WriteStdin writes to a process's stdin, and closes it with end.
	WriteStdin(ctx context.Context, id string, data []byte, end bool) error

	// SignalProcess signals the process group. Signalling an ended one is
	// errs.Conflict with code process_ended.
	SignalProcess(ctx context.Context, id, name string) error

	// ResizeProcess changes the size of its terminal.
	ResizeProcess(ctx context.Context, id string, size Size) error

	// RemoveProcess kills the process group, if it lives, and forgets it.
	RemoveProcess(ctx context.Context, id string) error
}

// Guests finds guests to work in.
type Guests interface {
	// ProcessGuest returns the guest of the owner's VM, which is woken if it
	// sleeps. Errors: errs.NotFound, errs.Conflict with code vm_not_running,
	// errs.Unsupported when this VM's driver reaches no agent; of the wake.
	ProcessGuest(ctx context.Context, owner, vmID string) (Guest, error)

	// AwakeProcessGuest does so, too, but wakes nobody: a VM that sleeps is
	// errs.Conflict with code vm_not_running.
	AwakeProcessGuest(ctx context.Context, owner, vmID string) (Guest, error)
}
