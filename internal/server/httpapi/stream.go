package httpapi

import (
	"context"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const (
	plainTextUTF8 = "text/plain; charset=utf-8"
	eventStream   = "text/event-stream"
)

// textStream answers with the output of write. With live, each write is flushed.
func (d *door) textStream(live bool, write func(context.Context, io.Writer) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		out := &textWriter{to: w, kind: plainTextUTF8, live: live}
		d.endStream(w, r, out, write(r.Context(), out))
	}}
}

// atOnce starts the answer before write has output.
func atOnce(write func(context.Context, io.Writer) error) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		if _, err := w.Write(nil); err != nil {
			return err
		}
		return write(ctx, w)
	}
}

// eventStream answers with the server-sent events that write writes. The answer
// begins with the first event: until then it can be an error.
func (d *door) eventStream(write func(context.Context, io.Writer) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		w.Header().Set("X-Accel-Buffering", "no") // else nginx would buffer it
		out := &textWriter{to: w, kind: eventStream, live: true}
		d.endStream(w, r, out, write(r.Context(), out))
	}}
}

// endStream reports err: in an answer if none has begun, else by cutting the
// connection, because the client must not take a part of a log for the whole.
func (d *door) endStream(w http.ResponseWriter, r *http.Request, out *textWriter, err error) {
	switch {
	case err == nil || out.live && r.Context().Err() != nil: // complete, or the client has disconnected
		out.begin()
	case !out.begun:
		d.writeProblem(w, r, err)
	default:
		d.cut(r, err)
	}
}

// cut ends an answer that cannot be completed.
func (d *door) cut(r *http.Request, err error) {
	_ = d.problemOf(r.Context(), err) // logs an internal error
	panic(http.ErrAbortHandler)
}

// textWriter is an answer that begins with its first byte.
type textWriter struct {
	to    http.ResponseWriter
	kind  string // Content-Type
	live  bool
	begun bool
}

func (w *textWriter) begin() {
	if w.begun {
		return
	}
	w.begun = true
	w.to.Header().Set("Content-Type", w.kind)
	w.to.WriteHeader(http.StatusOK)
}

func (w *textWriter) Write(p []byte) (int, error) {
	w.begin()
	n, err := w.to.Write(p)
	if err == nil && w.live {
		w.flush()
	}
	return n, err
}

// flush fails only if the connection is closed, which the next write reports.
func (w *textWriter) flush() { _ = http.NewResponseController(w.to).Flush() }
