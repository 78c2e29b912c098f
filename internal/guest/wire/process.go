package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"time"
)

// The operations on processes.
const (
	OpExec          Op = "process.exec"   // ProcessSpec → Process, then frames both ways, from the first byte of output
	OpAttachProcess Op = "process.attach" // ProcessArgs → Process, then frames both ways
	OpStartProcess  Op = "process.start"  // ProcessSpec → Process
	OpProcesses     Op = "process.list"   // → nothing, then a frame for each, and one for the end
	OpProcess       Op = "process.get"    // ProcessArgs → Process
	OpWriteProcess  Op = "process.write"  // ProcessArgs, then frames of stdin up to its end or a flush → nothing
	OpSignalProcess Op = "process.signal" // ProcessArgs → nothing
	OpResizeProcess Op = "process.resize" // ProcessArgs → nothing
	OpRemoveProcess Op = "process.remove" // ProcessArgs → nothing
)

// Codes of the refusals that are about processes.
const (
	CodeNoProcess     = "process_not_found"
	CodeManyProcesses = "too_many_processes"
	CodeEnded         = "process_ended"
	CodeStdinClosed   = "stdin_closed"
	CodeNoTerminal    = "no_terminal"
	CodeUser          = "invalid_user"
	CodeDir           = "invalid_cwd"
	CodeSignal        = "invalid_signal"
	CodeOffset        = "invalid_offset"
)

// Frames from the agent.
const (
	frameStdout  = 'o' // bytes
	frameStderr  = 'e' // bytes
	frameLost    = 'l' // number of bytes that are not kept any more, 8 bytes big-endian
	frameExit    = 'x' // ProcessExit
	frameNoStdin = 'n' // nothing: the process reads no stdin any more
	frameBeat    = 'b' // nothing, only to learn whether the host is there
	frameProcess = 'p' // Process
	frameEnd     = '.' // nothing: the list is complete
)

// Frames from the host.
const (
	frameStdin      = 'i' // bytes
	frameStdinEnd   = 'q' // nothing: stdin ends here
	frameStdinFlush = 'f' // nothing: this write ends here, stdin does not
)

// Terminal is the size of one, in characters.
type Terminal struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ProcessSpec says what to run.
type ProcessSpec struct {
	ID      string            `json:"id"` // chosen by the host; see ValidProcessID
	Argv    []string          `json:"argv,omitempty"`
	Shell   string            `json:"shell,omitempty"` // instead of Argv
	Env     map[string]string `json:"env,omitempty"`
	Dir     string            `json:"dir,omitempty"`
	User    string            `json:"user,omitempty"`
	TTY     *Terminal         `json:"tty,omitempty"`
	Stdin   bool              `json:"stdin,omitempty"`
	Timeout time.Duration     `json:"timeout_ns,omitempty"`
}

// Process is one process of the guest's. Its spec has no Env, and of the rest
// no more than MaxCommand bytes: it is for people.
type Process struct {
	Spec      ProcessSpec  `json:"spec"`
	PID       int          `json:"pid"`
	StartedAt int64        `json:"started_ns"`
	Exit      *ProcessExit `json:"exit,omitempty"`
	Output    int64        `json:"output"` // bytes so far
}

// Bounds of what is told of processes.
const (
	MaxCommand   = 4 << 10 // bytes of all strings of a spec
	MaxProcesses = 2048    // in one list
)

// ProcessExit tells how a process ended.
type ProcessExit struct {
	Code     int    `json:"code"`
	Signal   string `json:"signal,omitempty"`
	TimedOut bool   `json:"timed_out,omitempty"`
	At       int64  `json:"at_ns"`
}

// ProcessArgs are the arguments of the operations on one process.
type ProcessArgs struct {
	ID       string    `json:"id"`
	From     int64     `json:"from,omitempty"`   // OpAttachProcess
	Signal   string    `json:"signal,omitempty"` // OpSignalProcess
	Terminal *Terminal `json:"tty,omitempty"`    // OpResizeProcess
}

// ProcessChunk is what an attached reader gets: output (Data), a gap (Lost), or
// the end (Exit).
type ProcessChunk struct {
	Stderr bool
	Data   []byte
	Lost   int64
	Exit   *ProcessExit
}

// ValidProcessID reports whether id is one of a process: exec_ and 12
// lower-case letters and digits.
func ValidProcessID(id string) bool {
	const prefix, length = "exec_", 12
	if len(id) != len(prefix)+length || id[:len(prefix)] != prefix {
		return false
	}
	for _, c := range []byte(id[len(prefix):]) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// ProcessHandler runs processes in the guest. A Handler that is none of these
// does not know the operations. What it refuses it refuses with [Refuse].
type ProcessHandler interface {
	StartProcess(spec ProcessSpec) (Process, error)
	ExecProcess(spec ProcessSpec) (Process, ProcessAttachment, error)
	AttachProcess(id string, from int64) (Process, ProcessAttachment, error)
	Processes() []Process
	Process(id string) (Process, error)

	// WriteProcess waits until the process has taken p, or ctx is done, and
	// returns how much it took.
	WriteProcess(ctx context.Context, id string, p []byte) (int, error)
	EndProcessStdin(ctx context.Context, id string) error
	SignalProcess(id, name string) error
	ResizeProcess(id string, size Terminal) error
	RemoveProcess(id string) error
}

// ProcessAttachment is one reader of a process.
type ProcessAttachment interface {
	// Next waits for the next chunk until ctx is done; its data is at most
	// MaxFrame bytes. Where it has to wait it runs idle first.
	Next(ctx context.Context, idle func() error) (ProcessChunk, error)
	Close()
}

var errProcessFrame = errors.New("a frame that no agent sends")

// parseProcessFrame reads a chunk from a frame of the agent's.
func parseProcessFrame(kind byte, payload []byte) (ProcessChunk, error) {
	switch kind {
	case frameStdout, frameStderr:
		if len(payload) == 0 {
			return ProcessChunk{}, errProcessFrame
		}
		return ProcessChunk{Stderr: kind == frameStderr, Data: payload}, nil
	case frameLost:
		return parseLost(payload)
	case frameExit:
		exit := &ProcessExit{}
		if err := json.Unmarshal(payload, exit); err != nil {
			return ProcessChunk{}, errProcessFrame
		}
		return ProcessChunk{Exit: exit}, nil
	default:
		return ProcessChunk{}, errProcessFrame
	}
}

func parseLost(payload []byte) (ProcessChunk, error) {
	if len(payload) != 8 {
		return ProcessChunk{}, errProcessFrame
	}
	lost := binary.BigEndian.Uint64(payload)
	if lost == 0 || lost > math.MaxInt64 {
		return ProcessChunk{}, errProcessFrame
	}
	return ProcessChunk{Lost: int64(lost)}, nil
}

// frame returns the chunk as a frame of the agent's.
func (c ProcessChunk) frame() (kind byte, payload []byte, err error) {
	switch {
	case c.Exit != nil:
		payload, err = json.Marshal(c.Exit)
		return frameExit, payload, err
	case c.Lost > 0:
		return frameLost, binary.BigEndian.AppendUint64(nil, uint64(c.Lost)), nil
	case c.Stderr:
		return frameStderr, c.Data, nil
	default:
		return frameStdout, c.Data, nil
	}
}
