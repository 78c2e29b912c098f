package api

import (
	"encoding/json"
	"errors"
	"time"
)

// Command is what to run: a program and its arguments as they are, or a line
// for the guest's shell. In JSON it is an array of strings or one string.
type Command struct {
	Argv  []string
	Shell string
}

// MarshalJSON writes an array when there is one, else the line.
func (c Command) MarshalJSON() ([]byte, error) {
	if len(c.Argv) > 0 {
		return json.Marshal(c.Argv)
	}
	return json.Marshal(c.Shell)
}

// UnmarshalJSON reads either form.
func (c *Command) UnmarshalJSON(b []byte) error {
	*c = Command{}
	if json.Unmarshal(b, &c.Shell) == nil {
		return nil
	}
	if json.Unmarshal(b, &c.Argv) == nil {
		return nil
	}
	return errors.New("a command is a string or an array of strings")
}

// Encodings of bytes in JSON.
const (
	EncodingUTF8   = "utf8"
	EncodingBase64 = "base64"
)

// RunExec is the body of POST /vms/{id}/exec, and the first message to
// GET /vms/{id}/exec.
type RunExec struct {
	Command        Command           `json:"command" doc:"A line for the guest's /bin/sh, or a program and its arguments."`
	Env            map[string]string `json:"env,omitempty" doc:"Variables on top of the guest's own."`
	Cwd            string            `json:"cwd,omitempty" maxLength:"4096" doc:"Absolute path to run in. Defaults to the user's home."`
	User           string            `json:"user,omitempty" maxLength:"129" doc:"NAME or UID, optionally with :GROUP. Defaults to root." example:"root"`
	Stdin          string            `json:"stdin,omitempty" doc:"What the command reads first."`
	StdinEncoding  string            `json:"stdin_encoding,omitempty" enum:"utf8,base64" default:"utf8" doc:"How stdin is written here."`
	StdinOpen      bool              `json:"stdin_open,omitempty" doc:"More comes on stdin; else it ends at once. For streaming and in the background."`
	TimeoutMS      int64             `json:"timeout_ms,omitempty" minimum:"0" maximum:"2592000000" doc:"Milliseconds after which the command and all it started are killed; 0 for none."`
	TTY            *TerminalSize     `json:"tty,omitempty" doc:"Run it on a terminal of this size; then all output is stdout."`
	Background     bool              `json:"background,omitempty" doc:"Answer at once, with the exec's id."`
	MaxOutputBytes int               `json:"max_output_bytes,omitempty" minimum:"0" maximum:"4194304" doc:"How much of stdout, and of stderr, is returned; 0 for 1 MiB. The rest is dropped."`
	OutputEncoding string            `json:"output_encoding,omitempty" enum:"utf8,base64" default:"utf8" doc:"How stdout and stderr are written in the answer. In utf8, bytes that are none become U+FFFD."`
}

// TerminalSize is a terminal's, in characters.
type TerminalSize struct {
	Rows int `json:"rows" minimum:"1" maximum:"65535" example:"24"`
	Cols int `json:"cols" minimum:"1" maximum:"65535" example:"80"`
}

// ExecResult is what became of a command that was waited for.
type ExecResult struct {
	ID              string `json:"id" example:"exec_abc123def456"`
	Stdout          string `json:"stdout"`
	Stderr          string `json:"stderr"`
	ExitCode        int    `json:"exit_code" doc:"As a shell has it: 128+N for signal N, 127 not found, 126 not to be run."`
	Signal          string `json:"signal,omitempty" doc:"The signal that ended it, if one did." example:"SIGKILL"`
	TimedOut        bool   `json:"timed_out" doc:"timeout_ms passed, and it was killed."`
	StdoutTruncated bool   `json:"stdout_truncated" doc:"There was more on stdout."`
	StderrTruncated bool   `json:"stderr_truncated" doc:"There was more on stderr."`
	DurationMS      int64  `json:"duration_ms" doc:"From the request to the end, in milliseconds."`
}

// States of an exec.
const (
	ExecRunning = "running"
	ExecExited  = "exited"
)

// Exec is a command that was started in a VM. The guest keeps it, with the end
// of its output, until it is deleted or newer ones need the room.
type Exec struct {
	ID          string        `json:"id" example:"exec_abc123def456"`
	Command     Command       `json:"command" doc:"What was asked for."`
	User        string        `json:"user,omitempty"`
	Cwd         string        `json:"cwd,omitempty"`
	TTY         *TerminalSize `json:"tty,omitempty" doc:"Its terminal's size at the start; absent without one."`
	State       string        `json:"state" enum:"running,exited"`
	PID         int           `json:"pid" doc:"In the guest."`
	StartedAt   time.Time     `json:"started_at" doc:"By the guest's clock."`
	EndedAt     *time.Time    `json:"ended_at,omitempty" doc:"By the guest's clock."`
	ExitCode    *int          `json:"exit_code,omitempty"`
	Signal      string        `json:"signal,omitempty" example:"SIGKILL"`
	TimedOut    bool          `json:"timed_out,omitempty"`
	OutputBytes int64         `json:"output_bytes" doc:"Bytes of stdout and stderr so far."`
}

// SignalExec is the body of POST /vms/{id}/execs/{exec_id}/signal.
type SignalExec struct {
	Signal string `json:"signal" maxLength:"16" doc:"Name or number." example:"TERM"`
}

// ExecInput is the body of POST /vms/{id}/execs/{exec_id}/stdin.
type ExecInput struct {
	Data     string `json:"data,omitempty"`
	Encoding string `json:"encoding,omitempty" enum:"utf8,base64" default:"utf8" doc:"How data is written."`
	Close    bool   `json:"close,omitempty" doc:"stdin ends after data."`
}

// Done is the body of a call that has nothing to tell.
type Done struct {
	Status string `json:"status" enum:"ok" doc:"Always ok."`
}

// Channels of a streamed exec: the first byte of each binary message.
const (
	ChannelStdin  = 0
	ChannelStdout = 1
	ChannelStderr = 2
)

// Types of the text messages of a streamed exec.
const (
	ExecStarted     = "started"      // server: Exec, Offset
	ExecOutputLost  = "output_lost"  // server: Bytes are not kept any more
	ExecStdinTaken  = "stdin_taken"  // server: Bytes of stdin that the command has got
	ExecStdinClosed = "stdin_closed" // server: the command reads no more; what comes is dropped
	ExecEnded       = "exit"         // server: ExitCode, Signal, TimedOut; the last message
	ExecError       = "error"        // server: Error, Code, Hint
	ExecResize      = "resize"       // client: Rows, Cols
	ExecSignal      = "signal"       // client: Signal
	ExecCloseStdin  = "close_stdin"  // client
)

// ExecMessage is a text message of a streamed exec, either way. Type says which
// of the fields count.
type ExecMessage struct {
	Type     string `json:"type"`
	Exec     *Exec  `json:"exec,omitempty"`
	Offset   *int64 `json:"offset,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
	Signal   string `json:"signal,omitempty"`
	TimedOut bool   `json:"timed_out,omitempty"`
	Error    string `json:"error,omitempty"`
	Code     string `json:"code,omitempty"`
	Hint     string `json:"hint,omitempty"`
	Rows     int    `json:"rows,omitempty"`
	Cols     int    `json:"cols,omitempty"`
}
