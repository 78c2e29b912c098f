// Package process starts and controls programs inside a guest through its agent,
// with or without a network.
//
// A process belongs to its guest, not to a connection: its id stays valid when a
// client disconnects or hatchd restarts. The package knows no HTTP and no wire
// protocol; doors use [Service], and internal/guest supplies [Guest]. Start at
// [Service].
package process

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// IDPrefix is what ids of processes start with.
const IDPrefix = "exec_"

// MaxSpec bounds a [Spec], in bytes of Argv or Shell, Env, Dir and User together,
// plus one per entry. It is a little less than Linux's limit for one argument. A
// [Guest] accepts any bytes in it.
const MaxSpec = 120 << 10

// Spec describes a program to run.
type Spec struct {
	ID      string            // of the process; "" for a new one
	Argv    []string          // program and arguments; looked up in the guest's PATH when it has no slash
	Shell   string            // instead of Argv: a line for /bin/sh -c
	Env     map[string]string // on top of the guest's defaults
	Dir     string            // absolute; "" means the user's home
	User    string            // NAME or UID, optionally :GROUP; "" means root
	TTY     *Size             // nil: pipes, with stdout and stderr separate
	Stdin   bool              // stdin is open until it is closed; else it is empty
	Timeout time.Duration     // after which the process group is killed; 0 means none
	Tag     string            // a name for it that the caller gives; agents of earlier versions do not keep it
}

// Size is the size of a terminal, in characters; both are at least 1.
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

// Process is a process that runs or has ended. The guest keeps an ended one until
// it is removed, or is one of too many.
type Process struct {
	ID        string // exec_ and lower-case letters and digits; unique in its guest
	PID       int    // in the guest
	Spec      Spec   // without Env, which may hold secrets
	State     State
	StartedAt time.Time // by the guest's clock
	Exit      *Exit     // nil while it runs
	Output    int64     // bytes of stdout and stderr so far
}

// Exit says how a process ended.
type Exit struct {
	Code     int    // as in a shell: 128+N for signal N, 127 not found, 126 not executable
	Signal   string // such as SIGKILL; "" without one
	TimedOut bool   // the timeout has ended it
	At       time.Time
}

// Channel is one of a process's output streams.
type Channel string

// The channels. With a terminal all output is Stdout.
const (
	Stdout Channel = "stdout"
	Stderr Channel = "stderr"
)

// Chunk is either output (Data), a gap in it (Lost) or the end (Exit).
type Chunk struct {
	Channel Channel
	Data    []byte // valid until the next call
	Offset  int64  // of the next chunk, in bytes of all output; where to attach again
	Lost    int64  // number of bytes that the guest has dropped
	Exit    *Exit  // the process has ended, and this is the last chunk
}

// Stream is one reader and writer of a process. One goroutine may read and one
// write. While it is attached, a process that is ahead of it waits, as for a pipe.
type Stream interface {
	// Process describes the process at the time of attaching.
	Process() Process

	// Next waits for the next chunk. After the one with Exit it returns io.EOF.
	// Errors: errs.Unavailable with code agent_unavailable when the guest is lost,
	// with code detached when Next was not called for half a minute. The process
	// may continue.
	Next() (Chunk, error)

	// Write writes to stdin, and waits while the process does not read.
	// Errors: errs.Conflict with code stdin_closed.
	Write(p []byte) (int, error)

	// CloseStdin ends stdin after what was written. To a terminal it sends ctrl-D.
	CloseStdin() error

	// CloseOutput closes stdout or stderr, as the reader of a pipe would: a process that
	// writes more to it gets SIGPIPE. It hangs up a terminal. Output that was read
	// before still comes, also to others that are attached.
	CloseOutput(Channel) error

	// Signal sends a signal, such as SIGTERM or TERM, to the process group.
	Signal(name string) error

	// Resize changes the terminal's size. It is an error without a terminal.
	Resize(Size) error

	// Close detaches; the process continues. It ends a Next or Write.
	Close() error
}

// Guest runs processes in one guest. Each method returns errs.Unavailable with
// code agent_unavailable when the agent does not answer in time, and
// errs.Unsupported with code agent_too_old when it does not know the operation.
type Guest interface {
	Starter
	Lister
	Controller
}

// Starter starts processes, and attaches to them.
type Starter interface {
	// Exec starts a process and attaches at the first byte of its output. A program
	// that cannot be run is no error: as in a shell, it exits with 127 or 126 and a
	// message on stderr. The stream ends with ctx.
	// Errors: errs.Invalid for a user or directory that the guest does not have;
	// errs.TooMany with code too_many_processes.
	Exec(ctx context.Context, spec Spec) (Stream, error)

	// StartProcess starts a process without attaching to it.
	StartProcess(ctx context.Context, spec Spec) (Process, error)

	// Attach attaches to a process at offset from of its output; 0 is the beginning.
	// The stream ends with ctx.
	// Errors: errs.NotFound with code process_not_found.
	Attach(ctx context.Context, id string, from int64) (Stream, error)
}

// Lister describes processes.
type Lister interface {
	// Processes lists all, the newest first.
	Processes(ctx context.Context) ([]Process, error)

	// Process returns one. Errors: errs.NotFound.
	Process(ctx context.Context, id string) (Process, error)
}

// Controller controls one process.
type Controller interface {
	// WriteStdin writes to a process's stdin, and closes it with end.
	WriteStdin(ctx context.Context, id string, data []byte, end bool) error

	// SignalProcess signals the process group. Errors: errs.Conflict with code
	// process_ended.
	SignalProcess(ctx context.Context, id, name string) error

	// ResizeProcess changes the size of its terminal.
	ResizeProcess(ctx context.Context, id string, size Size) error

	// RemoveProcess kills the process group, if it runs, and forgets the process.
	RemoveProcess(ctx context.Context, id string) error
}

// Mode says what opening a guest does to a VM that sleeps.
type Mode int

// The modes.
const (
	Wake   Mode = iota // it is woken
	NoWake             // it is errs.Conflict with code vm_not_running
)

// Guests opens guests.
type Guests interface {
	// Open returns the guest of a VM that the scope sees. The VM is in use until
	// release, which the caller must call once. Errors: errs.NotFound,
	// errs.Conflict with code vm_not_running, errs.Unsupported when the VM's driver
	// reaches no agent; those of a wake.
	Open(ctx context.Context, scope access.Scope, vmID string, mode Mode) (guest Guest, release func(), err error)
}
