package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Op is the name of an operation.
type Op string

// The operations of version 1.
const (
	OpHello    Op = "hello"    // → Hello
	OpStatus   Op = "status"   // → Status
	OpWatch    Op = "watch"    // → Status at once and after each change, until the stream ends
	OpShutdown Op = "shutdown" // ShutdownArgs → nothing
)

// Request is the first message of a stream. Later versions may add fields; a reader
// ignores fields that it does not know. Each operation defines what follows the reply.
type Request struct {
	Version int             `json:"version"`
	Op      Op              `json:"op"`
	Args    json.RawMessage `json:"args,omitempty"`
}

// Reply answers a request.
type Reply struct {
	OK     bool            `json:"ok"`
	Code   string          `json:"code,omitempty"`  // for programs, if not OK
	Error  string          `json:"error,omitempty"` // for people, if not OK
	Result json.RawMessage `json:"result,omitempty"`
}

// Codes of a Reply that is not OK.
const (
	CodeUnknownOp = "unknown_op" // the agent is too old for the operation
	CodeInvalid   = "invalid"    // the arguments are wrong
	CodeFailed    = "failed"     // the operation failed in the guest
	CodeBusy      = "busy"       // the agent is serving its maximum number of requests
)

// long reports whether requests for o may stay open for long. They cannot use all slots,
// so that hatchd can always make short requests.
func (o Op) long() bool {
	switch o {
	case OpExec, OpExecBytes, OpAttachProcess, OpDial,
		OpReadFile, OpWriteFile, OpListFiles, OpReadTree, OpWriteTree, OpWatchFiles, OpTailFile:
		return true
	default:
		return false
	}
}

// Hello describes the agent.
type Hello struct {
	Agent    string `json:"agent"`    // version of the program
	Versions []int  `json:"versions"` // of the protocol
	BootID   string `json:"boot_id"`  // changes with each boot of the guest
}

// Address is one address of a guest's interface.
type Address struct {
	Interface string `json:"interface"`
	Prefix    string `json:"prefix"` // ADDRESS/BITS
}

// CloudInit is cloud-init's state.
type CloudInit struct {
	Status   string   `json:"status"` // one of the CloudInit constants
	Errors   []string `json:"errors,omitempty"`
	Warnings []string `json:"warnings,omitempty"` // if it has ended
}

// The states of cloud-init.
const (
	CloudInitAbsent   = "absent"
	CloudInitDisabled = "disabled"
	CloudInitRunning  = "running" // running, or not yet started
	CloudInitDone     = "done"
	CloudInitError    = "error"
)

// Status is a guest's state.
type Status struct {
	Addresses []Address `json:"addresses"` // except loopback and link-local ones
	CloudInit CloudInit `json:"cloud_init"`
	GoingDown bool      `json:"going_down,omitempty"` // it shuts down or reboots; exact in the answer to OpStatus
	SSH       SSH       `json:"ssh"`
}

// ShutdownArgs are the arguments of OpShutdown.
type ShutdownArgs struct {
	Reboot bool `json:"reboot"`
}

// RemoteError is a Reply that is not OK.
type RemoteError struct {
	Code, Message string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("the agent answered %q: %q", e.Code, e.Message)
}

// Refuse returns an error for a [Handler] to return, which is sent with its code.
func Refuse(code, format string, args ...any) *RemoteError {
	return &RemoteError{Code: code, Message: fmt.Sprintf(format, args...)}
}

var errTooLarge = errors.New("message exceeds its limit")

// writeMessage writes v as JSON, after its length: 4 bytes, big-endian.
func writeMessage(w io.Writer, v any) error { return writeLimited(w, v, maxMessage) }

func writeLimited(w io.Writer, v any, limit int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode a message: %w", err)
	}
	if len(body) > limit {
		return errTooLarge
	}
	framed := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	_, err = w.Write(append(framed, body...))
	return err
}

// readMessage reads one message into v. It never reads beyond the message.
func readMessage(r io.Reader, v any) error { return readLimited(r, v, maxMessage) }

func readLimited(r io.Reader, v any, limit uint32) error {
	var prefix [4]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(prefix[:])
	if size > limit {
		return errTooLarge
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("cannot read a message: %w", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("cannot decode a message: %w", err)
	}
	return nil
}

// decodeResult decodes the result of a reply, or returns the reply's error.
func (r Reply) decodeResult(result any) error {
	if !r.OK {
		return &RemoteError{Code: r.Code, Message: r.Error}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Result, result); err != nil {
		return fmt.Errorf("cannot decode a result: %w", err)
	}
	return nil
}
