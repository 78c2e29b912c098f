package connect

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// Code says what is wrong, for programs.
type Code string

// The codes of the protocol.
const (
	Canceled           Code = "canceled"
	Unknown            Code = "unknown"
	InvalidArgument    Code = "invalid_argument"
	DeadlineExceeded   Code = "deadline_exceeded"
	NotFound           Code = "not_found"
	AlreadyExists      Code = "already_exists"
	PermissionDenied   Code = "permission_denied"
	ResourceExhausted  Code = "resource_exhausted"
	FailedPrecondition Code = "failed_precondition"
	Aborted            Code = "aborted"
	OutOfRange         Code = "out_of_range"
	Unimplemented      Code = "unimplemented"
	Internal           Code = "internal"
	Unavailable        Code = "unavailable"
	DataLoss           Code = "data_loss"
	Unauthenticated    Code = "unauthenticated"
)

var statuses = map[Code]int{
	Canceled: 499, Unknown: 500, InvalidArgument: 400, DeadlineExceeded: 504, NotFound: 404, AlreadyExists: 409,
	PermissionDenied: 403, ResourceExhausted: 429, FailedPrecondition: 400, Aborted: 409, OutOfRange: 400,
	Unimplemented: 501, Internal: 500, Unavailable: 503, DataLoss: 500, Unauthenticated: 401,
}

// Status returns the HTTP status of a unary call that fails with the code.
func (c Code) Status() int { return cmp.Or(statuses[c], http.StatusInternalServerError) }

// Error is an error as the client of a call gets it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message,omitempty"`
}

// Errorf returns an error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Error returns the code and the message.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// errorOf returns what the client gets for an error. The texts of errors that are not
// meant for it stay here.
func errorOf(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(DeadlineExceeded, "the time that the caller gave has passed")
	case errors.Is(err, context.Canceled): // a client that has left gets no answer
		return Errorf(Unavailable, "the server ends this call")
	default:
		return Errorf(Internal, "an internal error; hatchd's log has the details")
	}
}

// WriteError answers a call, of which nothing has been answered, with an error in the form
// for unary calls, which clients of streams understand as well.
func WriteError(w http.ResponseWriter, err error) {
	e := errorOf(err)
	writeError(w, e.Code.Status(), e)
}

func writeError(w http.ResponseWriter, status int, e *Error) {
	text, _ := json.Marshal(e) // two strings
	w.Header().Set("Content-Type", unaryType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}
