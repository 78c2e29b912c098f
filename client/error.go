package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	"github.com/hatchvm/hatch/api"
)

// Error is a failure that the server explained.
type Error struct {
	Problem api.Problem
}

// Error returns the server's sentence, and its hint when there is one.
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

// IsInvalid reports whether the server refused the request as wrong.
func IsInvalid(err error) bool { return hasStatus(err, http.StatusBadRequest) }

// IsUnauthenticated reports whether the server knows no such key.
func IsUnauthenticated(err error) bool { return hasStatus(err, http.StatusUnauthorized) }

// IsNotFound reports whether there is no such object.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsConflict reports whether the object's state, or another object, forbids the call.
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsExhausted reports whether the host has no capacity left.
func IsExhausted(err error) bool { return hasStatus(err, http.StatusInsufficientStorage) }

// IsUnavailable reports whether the same call may succeed later.
func IsUnavailable(err error) bool { return hasStatus(err, http.StatusServiceUnavailable) }

// IsTimeout reports whether a wait ended before what it waited for.
func IsTimeout(err error) bool { return HasCode(err, "wait_timeout") }

func hasStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Problem.Status == status
}

// readError makes an [*Error] of an answer that is no success. Something other
// than Hatch may have answered: then the status is all there is to tell.
func readError(resp *http.Response) error {
	e := &Error{}
	if isJSON(resp.Header) {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
		if json.Unmarshal(body, &e.Problem) != nil {
			e.Problem = api.Problem{}
		}
	}
	e.Problem.Status = resp.StatusCode
	if e.Problem.Error == "" {
		e.Problem.Title = http.StatusText(resp.StatusCode)
		e.Problem.Error = fmt.Sprintf("the server answered %d %s without a reason; is it a Hatch server?",
			resp.StatusCode, e.Problem.Title)
	}
	return e
}

func isJSON(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (kind == "application/json" || kind == "application/problem+json")
}
