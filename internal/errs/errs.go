// Package errs has the error that clients see: a kind, a stable machine-readable
// code, the field of the request that caused it, a message, and a hint that says
// what to do.
//
// It is not for logging, and does not map errors to HTTP: that is one table in
// internal/server/httpapi. Start at [New] and [KindOf].
package errs

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind classifies errors by what the client can do about them.
type Kind int

// The kinds. Any error that is not an [*Error] is Internal.
const (
	Internal        Kind = iota // a bug or a broken host; details go to the log only
	Invalid                     // the request is wrong; the same request fails again
	Unauthenticated             // no key, or an unknown one
	Forbidden                   // a key without this right
	NotFound                    // no such object, or none that the client may see
	Conflict                    // not in this state, or already in use
	Unmet                       // the request's own condition on the state does not hold
	TooLarge                    // the request body is over its limit
	TooMany                     // over a rate limit
	Exhausted                   // the host has no capacity left
	Unsupported                 // this host or driver cannot do it
	Unavailable                 // not now; the same request may succeed later
	TimedOut                    // the time that the caller gave has passed; nothing is broken
)

var kindNames = map[Kind]string{
	Internal: "internal", Invalid: "invalid", Unauthenticated: "unauthenticated",
	Forbidden: "forbidden", NotFound: "not_found", Conflict: "conflict", Unmet: "unmet",
	TooLarge: "too_large", TooMany: "too_many", Exhausted: "exhausted",
	Unsupported: "unsupported", Unavailable: "unavailable",
	TimedOut: "timed_out",
}

// String returns the kind as it appears in logs and, for errors without a
// code of their own, in the API.
func (k Kind) String() string { return kindNames[k] }

// DatabaseUnavailable is the code of an Unavailable error whose cause is that the
// database does not answer. Whether a change was stored is not known then.
const DatabaseUnavailable = "database_unavailable"

// Error is an error for a client. Message says what could not be done and why,
// without a path or a secret of the host; Err, when set, is the cause for the log
// and is never sent to a client.
type Error struct {
	Kind    Kind
	Code    string // stable, snake_case, for programs
	Field   string // the wrong field of the request, "" when there is none
	Message string
	Hint    string // what to do, or ""
	Err     error

	// VMID is the id of a VM that the request has left in state error, or "".
	VMID string

	// RetryAfter is how long a client should wait before it sends the request again; 0
	// means what is usual for the kind.
	RetryAfter time.Duration
}

// New returns an error of kind with a stable code and a formatted message.
func New(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// InvalidField returns an Invalid error about one field of a request.
// The message starts with the field's name.
func InvalidField(field, format string, args ...any) *Error {
	return &Error{
		Kind: Invalid, Code: "invalid_" + field, Field: field,
		Message: field + ": " + fmt.Sprintf(format, args...),
	}
}

// WithField returns a copy of e that names the wrong field of the request.
func (e *Error) WithField(field string) *Error {
	c := *e
	c.Field = field
	return &c
}

// WithCode returns a copy of e with another code.
func (e *Error) WithCode(code string) *Error {
	c := *e
	c.Code = code
	return &c
}

// WithHint returns a copy of e that says what to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// WithCause returns a copy of e with a cause for the log.
func (e *Error) WithCause(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// WithVM returns a copy of e that names the VM which the request has left in state
// error.
func (e *Error) WithVM(id string) *Error {
	c := *e
	c.VMID = id
	return &c
}

// WithRetryAfter returns a copy of e that says when to try again.
func (e *Error) WithRetryAfter(wait time.Duration) *Error {
	c := *e
	c.RetryAfter = wait
	return &c
}

// Error returns the message and, for the log, its cause.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first [*Error] in err's chain, and Internal
// for every other error.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// As returns the first [*Error] in err's chain.
func As(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok
}

// Public returns what a user may read of err: the message of the first [*Error]
// in its chain, else that the log has the details.
func Public(err error) string {
	if e, ok := As(err); ok {
		return e.Message
	}
	return "an internal error; hatchd's log has the details"
}

// Is reports whether err wraps an [*Error] of this kind.
func Is(err error, kind Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}

// HasCode reports whether err wraps an [*Error] with this code.
func HasCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// Shortage is the cause of an Exhausted error that says how much is missing.
type Shortage struct{ Bytes int64 }

// Error returns the missing amount.
func (s Shortage) Error() string { return fmt.Sprintf("%d bytes are missing", s.Bytes) }

// Missing returns how many bytes are missing according to err, 0 when it says none.
func Missing(err error) int64 {
	var s Shortage
	_ = errors.As(err, &s)
	return s.Bytes
}

// Brief bounds a value of a request that an error quotes.
func Brief(s string) string { return Cut(s, 64) }

// Cut bounds a text to limit bytes and marks the cut.
func Cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
