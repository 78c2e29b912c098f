package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// The operations on processes.
const (
	OpExec          Op = "process.exec"        // ProcessSpec → Process, then frames both ways, from the first byte of output
	OpAttachProcess Op = "process.attach"      // ProcessArgs → Process, then frames both ways
	OpStartProcess  Op = "process.start"       // ProcessSpec → Process
	OpExecBytes     Op = "process.exec.bytes"  // as OpExec, with the strings of the spec's command in base64
	OpStartBytes    Op = "process.start.bytes" // as OpStartProcess, likewise
	OpProcesses     Op = "process.list"        // → nothing, then a frame for each process, and frameEnd
	OpProcess       Op = "process.get"         // ProcessArgs → Process
	OpWriteProcess  Op = "process.write"       // ProcessArgs, then frames of stdin up to its end or a flush → nothing
	OpSignalProcess Op = "process.signal"      // ProcessArgs → nothing
	OpResizeProcess Op = "process.resize"      // ProcessArgs → nothing
	OpRemoveProcess Op = "process.remove"      // ProcessArgs → nothing
	OpCloseOutput   Op = "process.close"       // ProcessArgs → nothing; agents of earlier versions do not know it
)

// Codes of errors about processes.
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
	frameLost    = 'l' // number of bytes of output that were dropped, 8 bytes big-endian
	frameExit    = 'x' // ProcessExit
	frameNoStdin = 'n' // nothing: the stdin of the process is closed
	frameBusy    = 'b' // nothing: the process does not read; the write fails if hatchd has closed the stream
	frameProcess = 'p' // Process
	frameEnd     = '.' // nothing: the list is complete
)

// Frames from the host.
const (
	frameStdin      = 'i' // bytes
	frameStdinEnd   = 'q' // nothing: stdin ends
	frameStdinFlush = 'f' // nothing: this write ends, but not stdin
)

// Terminal is the size of a terminal, in characters.
type Terminal struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ProcessSpec describes a process to start.
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
	Tag     string            `json:"tag,omitempty"` // agents of earlier versions do not keep it
}

// byteSpec is a [ProcessSpec] in a form that keeps strings of the command that are not
// UTF-8, which JSON would change. Agents of earlier versions do not know it.
type byteSpec struct {
	ProcessSpec
	Argv  [][]byte          `json:"argv,omitempty"`
	Shell []byte            `json:"shell,omitempty"`
	Env   map[string][]byte `json:"env,omitempty"`
	Dir   []byte            `json:"dir,omitempty"`
}

func toBytes(s ProcessSpec) byteSpec {
	b := byteSpec{ProcessSpec: s, Shell: []byte(s.Shell), Dir: []byte(s.Dir), Env: make(map[string][]byte, len(s.Env))}
	for _, word := range s.Argv {
		b.Argv = append(b.Argv, []byte(word))
	}
	for name, value := range s.Env {
		b.Env[name] = []byte(value)
	}
	return b
}

func (b byteSpec) spec() ProcessSpec {
	s := b.ProcessSpec
	s.Argv, s.Shell, s.Dir, s.Env = nil, string(b.Shell), string(b.Dir), make(map[string]string, len(b.Env))
	for _, word := range b.Argv {
		s.Argv = append(s.Argv, string(word))
	}
	for name, value := range b.Env {
		s.Env[name] = string(value)
	}
	return s
}

// isText reports whether JSON keeps all strings of the command.
func (s ProcessSpec) isText() bool {
	for _, value := range s.Env {
		if !utf8.ValidString(value) {
			return false
		}
	}
	words := append(slices.Clone(s.Argv), s.Shell, s.Dir)
	return !slices.ContainsFunc(words, func(word string) bool { return !utf8.ValidString(word) })
}

// Process describes a process of the guest. Its spec is only for display: it has no Env,
// and at most MaxCommand bytes.
type Process struct {
	Spec      ProcessSpec  `json:"spec"`
	PID       int          `json:"pid"`
	StartedAt int64        `json:"started_ns"`
	Exit      *ProcessExit `json:"exit,omitempty"`
	Output    int64        `json:"output"` // bytes so far
}

// Limits of descriptions.
const (
	MaxCommand   = 4 << 10 // bytes of all strings of a spec
	MaxProcesses = 2048    // in one list
)

// ProcessExit describes how a process ended.
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
	Stderr   bool      `json:"stderr,omitempty"` // OpCloseOutput: stderr instead of stdout
}

// ProcessChunk is output (Data), a number of dropped bytes (Lost), or the end (Exit).
type ProcessChunk struct {
	Stderr bool
	Data   []byte
	Lost   int64
	Exit   *ProcessExit
}

// ValidProcessID reports whether id is exec_ and 12 lower-case letters and digits.
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

// ProcessHandler runs processes in the guest. A [Handler] that does not implement it does
// not know the operations. Its errors come from [Refuse].
type ProcessHandler interface {
	ProcessStarter
	ProcessController
	Processes() []Process
	Process(id string) (Process, error)
}

// ProcessStarter starts processes, and attaches to them.
type ProcessStarter interface {
	StartProcess(spec ProcessSpec) (Process, error)
	ExecProcess(spec ProcessSpec) (Process, ProcessAttachment, error)
	AttachProcess(id string, from int64) (Process, ProcessAttachment, error)
}

// ProcessController controls one process.
type ProcessController interface {
	// WriteProcess waits until the process has read p, or ctx is done, and returns
	// how many bytes it read.
	WriteProcess(ctx context.Context, id string, p []byte) (int, error)
	EndProcessStdin(ctx context.Context, id string) error
	SignalProcess(id, name string) error
	ResizeProcess(id string, size Terminal) error
	// CloseProcessOutput closes the agent's end of stdout, or of stderr: further
	// output of the process fails with SIGPIPE. It hangs up a terminal.
	CloseProcessOutput(id string, stderr bool) error
	RemoveProcess(id string) error
}

// ProcessAttachment is one reader of a process.
type ProcessAttachment interface {
	// Next waits for the next chunk until ctx is done. Its data has at most MaxFrame
	// bytes. Next calls idle before it blocks.
	Next(ctx context.Context, idle func() error) (ProcessChunk, error)
	Close()
}

var errProcessFrame = errors.New("invalid frame of a process")

// parseProcessFrame returns the chunk in a frame from the agent.
func parseProcessFrame(kind byte, payload []byte) (ProcessChunk, error) {
	switch kind {
	case frameStdout, frameStderr:
		if len(payload) == 0 {
			return ProcessChunk{}, errProcessFrame
		}
		return ProcessChunk{Stderr: kind == frameStderr, Data: payload}, nil
	case frameLost:
		if len(payload) != 8 {
			return ProcessChunk{}, errProcessFrame
		}
		lost := binary.BigEndian.Uint64(payload)
		if lost == 0 || lost > math.MaxInt64 {
			return ProcessChunk{}, errProcessFrame
		}
		return ProcessChunk{Lost: int64(lost)}, nil
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

// frame returns the chunk as a frame from the agent.
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
