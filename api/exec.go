package api

import (
	"encoding/json"
	"errors"
)

// Command is a program and its arguments, or a line for the guest's shell. In
// JSON it is an array of strings, or a string.
type Command struct {
	Argv  []string
	Shell string
}

// MarshalJSON writes Argv if it is not empty, else Shell.
func (c Command) MarshalJSON() ([]byte, error) {
	if len(c.Argv) > 0 {
		return json.Marshal(c.Argv)
	}
	return json.Marshal(c.Shell)
}

// UnmarshalJSON reads an array or a string.
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

// RunExec is the body of POST /vms/{id}/exec, and the first message to
// GET /vms/{id}/exec.
type RunExec struct {
	Command        Command           `json:"command" doc:"A line for the guest's /bin/sh, or a program and its arguments."`
	Env            map[string]string `json:"env,omitempty" doc:"Environment variables to add to the guest's defaults."`
	Encoding       string            `json:"encoding,omitempty" enum:"utf8,base64" doc:"Encoding of each string of command, of each value of env, and of cwd. Defaults to utf8."`
	Cwd            string            `json:"cwd,omitempty" maxLength:"4096" doc:"Absolute path of the working directory. Defaults to the user's home."`
	User           string            `json:"user,omitempty" maxLength:"129" doc:"NAME or UID, optionally with :GROUP. Defaults to root." example:"root"`
	Stdin          string            `json:"stdin,omitempty" doc:"Data for stdin, before any later input."`
	StdinEncoding  string            `json:"stdin_encoding,omitempty" enum:"utf8,base64" default:"utf8" doc:"Encoding of stdin."`
	StdinOpen      bool              `json:"stdin_open,omitempty" doc:"Keep stdin open for later input; otherwise it is closed after stdin. For streamed and background commands only."`
	TimeoutMS      int64             `json:"timeout_ms,omitempty" minimum:"0" maximum:"2592000000" doc:"Timeout in milliseconds, after which the command and its child processes are killed; 0 for none."`
	TTY            *TerminalSize     `json:"tty,omitempty" doc:"Give the command a terminal of this size; all output is stdout then."`
	Background     bool              `json:"background,omitempty" doc:"Do not wait for the end: the response is the started exec."`
	MaxOutputBytes int               `json:"max_output_bytes,omitempty" minimum:"0" maximum:"4194304" doc:"Limit of stdout and of stderr in the response, in bytes each; 0 means 1 MiB. The rest is dropped."`
	OutputEncoding string            `json:"output_encoding,omitempty" enum:"utf8,base64" default:"utf8" doc:"Encoding of stdout and stderr in the response. With utf8, invalid bytes become U+FFFD."`
}

// TerminalSize is the size of a terminal, in characters.
type TerminalSize struct {
	Rows int `json:"rows" minimum:"1" maximum:"65535" example:"24"`
	Cols int `json:"cols" minimum:"1" maximum:"65535" example:"80"`
}

// ExecResult is the result of a command that has ended.
type ExecResult struct {
	ID              string `json:"id" example:"exec_abc123def456"`
	Stdout          string `json:"stdout"`
	Stderr          string `json:"stderr"`
	ExitCode        int    `json:"exit_code" doc:"As in a shell: 128+N for signal N, 127 if the command was not found, 126 if it could not be run."`
	Signal          string `json:"signal,omitempty" doc:"Name of the signal that ended the command, if any." example:"SIGKILL"`
	TimedOut        bool   `json:"timed_out" doc:"Whether the command was killed because timeout_ms passed."`
	StdoutTruncated bool   `json:"stdout_truncated" doc:"Whether the end of stdout was dropped."`
	StderrTruncated bool   `json:"stderr_truncated" doc:"Whether the end of stderr was dropped."`
	DurationMS      int64  `json:"duration_ms" doc:"Time from the request to the end of the command, in milliseconds."`
}

// States of an exec.
const (
	ExecRunning = "running"
	ExecExited  = "exited"
)

// Exec is a command that was started in a VM. The guest keeps it, with the last
// of its output, until it is deleted or newer ones need the space.
type Exec struct {
	ID          string        `json:"id" example:"exec_abc123def456"`
	Command     Command       `json:"command" doc:"As in the request."`
	User        string        `json:"user,omitempty"`
	Cwd         string        `json:"cwd,omitempty"`
	TTY         *TerminalSize `json:"tty,omitempty" doc:"Size of its terminal at the start; absent without a terminal."`
	State       string        `json:"state" enum:"running,exited"`
	PID         int           `json:"pid" doc:"Process id in the guest."`
	StartedAt   Time          `json:"started_at" doc:"Time by the guest's clock."`
	EndedAt     *Time         `json:"ended_at,omitempty" doc:"Time by the guest's clock."`
	ExitCode    *int          `json:"exit_code,omitempty"`
	Signal      string        `json:"signal,omitempty" example:"SIGKILL"`
	TimedOut    bool          `json:"timed_out,omitempty"`
	OutputBytes int64         `json:"output_bytes" doc:"Bytes of stdout and stderr so far, together."`
}

// SignalExec is the body of POST /vms/{id}/execs/{exec_id}/signal.
type SignalExec struct {
	Signal string `json:"signal" maxLength:"16" doc:"Name or number of the signal." example:"TERM"`
}

// ExecInput is the body of POST /vms/{id}/execs/{exec_id}/stdin.
type ExecInput struct {
	Data     string `json:"data,omitempty"`
	Encoding string `json:"encoding,omitempty" enum:"utf8,base64" default:"utf8" doc:"Encoding of data."`
	Close    bool   `json:"close,omitempty" doc:"Close stdin after data."`
}

// Done is the response to a request that has no other result.
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
	ExecOutputLost  = "output_lost"  // server: Bytes of output were dropped by the guest
	ExecStdinTaken  = "stdin_taken"  // server: Bytes of stdin that were delivered, an acknowledgement
	ExecStdinClosed = "stdin_closed" // server: the command reads no more input; further input is dropped
	ExecEnded       = "exit"         // server: ExitCode, Signal, TimedOut; the last message
	ExecError       = "error"        // server: Error, Code, Hint
	ExecResize      = "resize"       // client: Rows, Cols
	ExecSignal      = "signal"       // client: Signal
	ExecCloseStdin  = "close_stdin"  // client
	ExecCloseStdout = "close_stdout" // client: reads no more stdout; a command that writes more of it gets SIGPIPE
	ExecCloseStderr = "close_stderr" // client: likewise
)

// ExecMessage is a text message of a streamed exec, in either direction. Type
// says which fields are set.
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
