package httpapi

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// writeTimeout bounds one write to a client.
const writeTimeout = time.Minute

// observe logs every request, and turns a panic into an answer. It logs only the
// method and the route's pattern: paths, queries, headers and bodies may hold
// secrets.
func (d *door) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		out := &writer{ResponseWriter: w, control: http.NewResponseController(w)}
		defer d.logRequest(out, r, began)
		defer d.recoverPanic(out, r)
		next.ServeHTTP(out, r)
	})
}

func (d *door) logRequest(w *writer, r *http.Request, began time.Time) {
	c := callerOf(r.Context())
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("route", r.Pattern), slog.Int("status", w.status),
		slog.Float64("ms", float64(time.Since(began).Microseconds())/1000),
		slog.String(logkey.RequestID, c.requestID), slog.String("key", cmp.Or(c.KeyID, c.KeyName, c.OwnerID)),
	}
	if c.OwnerID == "" {
		d.lines.Write(slog.LevelInfo, "request", append(attrs, slog.String(logkey.Client, admission.ClientAt(c.address).String()))...)
		return
	}
	d.log.LogAttrs(r.Context(), slog.LevelInfo, "request", attrs...)
}

// recoverPanic answers 500, or cuts the connection if an answer has begun: the client
// must not take a part of it for the whole.
func (d *door) recoverPanic(w *writer, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if cause == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		panic(cause)
	}
	d.log.ErrorContext(r.Context(), "panic", logkey.RequestID, callerOf(r.Context()).requestID,
		"panic", fmt.Sprint(cause), "stack", string(debug.Stack()))
	if w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	worded(r.Context(), errInternal).write(w)
}

// writer records the status, and sets a deadline for each write.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int // 0 until the answer has begun
}

// Unwrap gives http.ResponseController the writer below.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader records the status.
func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.bound()
	w.ResponseWriter.WriteHeader(status)
}

// Write writes, and gives up after writeTimeout.
func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.bound()
	return w.ResponseWriter.Write(p)
}

// bound fails only on a connection without deadlines.
func (w *writer) bound() { _ = w.control.SetWriteDeadline(time.Now().Add(writeTimeout)) }
