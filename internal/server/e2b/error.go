package e2b

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
)

const internalText = "cannot do this because of an internal error; the log of hatchd has the cause"

// statusOf is the only table from kinds of errors to the statuses of the control plane.
var statusOf = map[errs.Kind]int{
	errs.Invalid:         http.StatusBadRequest,
	errs.Unauthenticated: http.StatusUnauthorized,
	errs.Forbidden:       http.StatusForbidden,
	errs.NotFound:        http.StatusNotFound,
	errs.Conflict:        http.StatusConflict,
	errs.Unmet:           http.StatusConflict,
	errs.TooLarge:        http.StatusRequestEntityTooLarge,
	errs.TooMany:         http.StatusTooManyRequests,
	errs.Exhausted:       http.StatusServiceUnavailable,
	errs.Unsupported:     http.StatusNotImplemented,
	errs.Unavailable:     http.StatusServiceUnavailable,
	errs.TimedOut:        http.StatusInternalServerError, // clients repeat 502 to 504 by themselves
	errs.Internal:        http.StatusInternalServerError,
}

// usualRetryAfter is when clients may try again that are refused only for now.
var usualRetryAfter = map[errs.Kind]time.Duration{
	errs.TooMany: time.Second, errs.Unavailable: 2 * time.Second, errs.Exhausted: 5 * time.Second,
}

// problem is the body of each answer that is no success. Clients read the status from it,
// as a number.
type problem struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, problem{status, message})
}

// writeJSON writes an answer; its error means that the client has gone.
func writeJSON(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer cannot be encoded"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n'))
}

// fail answers with err.
func (d *Door) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := d.readable(r.Context(), err)
	message := e.Message
	if e.Hint != "" {
		message += "; " + e.Hint
	}
	if wait := cmp.Or(e.RetryAfter, usualRetryAfter[e.Kind]); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
	status := statusOf[e.Kind]
	if e.Code == codeReused {
		status = http.StatusUnprocessableEntity
	}
	if status == http.StatusInternalServerError {
		w.Header().Set("Should-Retry", "false")
	}
	writeError(w, status, message)
}

// readable returns err with a text for clients, and logs one that has none.
func (d *Door) readable(ctx context.Context, err error) *errs.Error {
	if e, ok := errs.As(err); ok && e.Kind != errs.Internal {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errs.New(errs.Unavailable, "request_ended", "the request ended before its work did")
	}
	d.cfg.Log.ErrorContext(ctx, "a request of an E2B client has failed", logkey.Error, err)
	return errs.New(errs.Internal, "internal", "%s", internalText)
}
