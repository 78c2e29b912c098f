// Package errs holds the words for failure that every other package shares:
// a kind (what sort of failure), a stable machine-readable code, the field of
// the request that caused it, a sentence for a person, and a hint that says
// what to do next.
//
// It is not for logging, and not for mapping to HTTP: that is one table in
// internal/server/httpapi. Start at [New] and [KindOf].
package errs

import (
	"errors"
	"fmt"
	"strings"
)

// Kind sorts failures by what the caller can do about them.
type Kind int

// The kinds. Anything that is not an [*Error] counts as Internal.
const (
	Internal        Kind = iota // a fault of ours; details go to the log only
	Invalid                     // the request is wrong; the same request fails again
	Unauthenticated             // no key, or not one of ours
	Forbidden                   // a key, but not for this
	NotFound                    // no such thing, or its existence is secret
	Conflict                    // not in this state, or already taken
	TooLarge                    // the request body is over its limit
	TooMany                     // slow down
	Exhausted                   // the host has no capacity left
	Unsupported                 // this host or driver cannot do it
	Unavailable                 // not now; the same request may succeed later
)

var kindNames = map[Kind]string{
	Internal: "internal", Invalid: "invalid", Unauthenticated: "unauthenticated",
	Forbidden: "forbidden", NotFound: "not_found", Conflict: "conflict",
	TooLarge: "too_large", TooMany: "too_many", Exhausted: "exhausted",
	Unsupported: "unsupported", Unavailable: "unavailable",
}

// String returns the kind as it appears in logs and, for errors without a
// code of their own, in the API.
func (k Kind) String() string { return kindNames[k] }

// Error is a failure that a person will read. Message says what could not be
// done and why, without a path or a secret of the host; Err, when set, is the
// cause for the log and is never shown to a client.
type Error struct {
	Kind    Kind
	Code    string // stable, snake_case, for programs
	Field   string // the request's field at fault, "" when there is none
	Message string
	Hint    string // what to do, "" when there is nothing to add
	Err     error
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

// WithField returns a copy of e that names the request's field at fault.
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

// WithHint returns a copy of e that says what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// WithCause returns a copy of e that carries err for the log.
func (e *Error) WithCause(err error) *Error {
	c := *e
	c.Err = err
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
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err carries an [*Error] of this kind.
func Is(err error, kind Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}

// HasCode reports whether err carries an [*Error] with this code.
func HasCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// Shortage is the cause of an Exhausted error that knows how much is missing.
type Shortage struct{ Bytes int64 }

// Error says so.
func (s Shortage) Error() string { return fmt.Sprintf("%d bytes are missing", s.Bytes) }

// Missing returns how many bytes err says to be missing, 0 when it does not say.
func Missing(err error) int64 {
	var s Shortage
	_ = errors.As(err, &s)
	return s.Bytes
}

// Brief bounds what an error repeats of a request.
func Brief(s string) string { return Cut(s, 64) }

// Cut bounds a text in bytes, and shows where it was cut.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
