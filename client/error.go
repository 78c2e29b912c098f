package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hatchvm/hatch/api"
)

// Error is an error that the server explained.
type Error struct {
	Problem    api.Problem
	RetryAfter time.Duration // when to try again, as the server says; 0 if it does not
}

// Error returns the server's sentence and hint, if any.
func (e *Error) Error() string {
	if e.Problem.Hint == "" {
		return e.Problem.Error
	}
	return e.Problem.Error + " (" + e.Problem.Hint + ")"
}

// Status returns the HTTP status.
func (e *Error) Status() int { return e.Problem.Status }

// HasCode reports whether err is an [*Error] with this code.
func HasCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Problem.Code == code
}

// IsInvalid reports whether the request was invalid.
func IsInvalid(err error) bool { return hasStatus(err, http.StatusBadRequest) }

// IsUnauthenticated reports whether the API key was missing or wrong.
func IsUnauthenticated(err error) bool { return hasStatus(err, http.StatusUnauthorized) }

// IsNotFound reports whether the object does not exist.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsConflict reports whether the state of the object, or another object, forbids the call.
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsPreconditionFailed reports whether the object is not, or no longer, as the call
// requires.
func IsPreconditionFailed(err error) bool { return hasStatus(err, http.StatusPreconditionFailed) }

// IsExhausted reports whether the host has no capacity left.
func IsExhausted(err error) bool { return hasStatus(err, http.StatusInsufficientStorage) }

// IsUnavailable reports whether the same call may succeed later.
func IsUnavailable(err error) bool { return hasStatus(err, http.StatusServiceUnavailable) }

// IsTimeout reports whether a wait timed out.
func IsTimeout(err error) bool { return HasCode(err, "wait_timeout") }

// unreachable is the error of a request that got no response.
type unreachable struct {
	base  string
	cause error
}

func (e unreachable) Error() string { return fmt.Sprintf("cannot reach %s: %v", e.base, e.cause) }

func (e unreachable) Unwrap() error { return e.cause }

// Unreachable returns the error of an [http.Client] as that of a Client is, for
// which [IsUnreachable] and [IsUnanswered] work.
func Unreachable(base string, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // ours names the server already
	}
	return unreachable{base, err}
}

// IsUnreachable reports whether the server could not be reached, or ended the
// connection without a response.
func IsUnreachable(err error) bool {
	_, ok := errors.AsType[unreachable](err)
	return ok && !errors.Is(err, context.Canceled) && !IsUnanswered(err)
}

// IsUnanswered reports whether the server accepted the connection, but did not
// respond in time.
func IsUnanswered(err error) bool {
	e, ok := errors.AsType[unreachable](err)
	if !ok {
		return false
	}
	op, isOp := errors.AsType[*net.OpError](e.cause)
	network, isNetwork := errors.AsType[net.Error](e.cause)
	return isNetwork && network.Timeout() && (!isOp || op.Op != "dial")
}

func hasStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Problem.Status == status
}

// readError returns an [*Error] for a response that is not a success. If another
// server than hatchd has sent it, only the status is known.
func readError(resp *http.Response) error {
	e := &Error{}
	if isJSON(resp.Header) {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
		if json.Unmarshal(body, &e.Problem) != nil {
			e.Problem = api.Problem{}
		}
	}
	e.Problem.Status = resp.StatusCode
	if seconds, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 31); err == nil {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	if e.Problem.Error == "" {
		e.Problem.Title = http.StatusText(resp.StatusCode)
		e.Problem.Error = fmt.Sprintf("the server returned %d %s without a reason; is it a Hatch server?",
			resp.StatusCode, e.Problem.Title)
	}
	return e
}

func isJSON(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (kind == "application/json" || kind == "application/problem+json")
}
