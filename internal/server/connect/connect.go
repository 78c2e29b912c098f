// Package connect serves calls of the Connect protocol with its JSON codec, over HTTP/1.1
// and HTTP/2: unary calls, streams of the server, and streams of the client.
//
// It knows no service and no schema: messages are Go values with JSON tags. It has no
// binary codec and no compression, and refuses both by name. Every size that comes from a
// client has a limit, and each message of a stream must be written in time, so that a
// client that reads nothing is left. Start at [Unary], [ServerStream] and [ClientStream].
package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"
)

// Limits of what a client sends.
const (
	MaxUnary    = 64 << 20        // bytes of the message of a unary call
	MaxMessage  = 16 << 20        // bytes of a message in a stream
	bodyIdle    = time.Minute     // between two parts of a message
	maxTimeout  = 10              // digits of a timeout in milliseconds
	drainLimit  = 1 << 20         // bytes that are read and dropped after an early error
	drainWithin = 2 * time.Second // how long that, or the end of a request, is waited for
)

// The content types of calls.
const (
	unaryType  = "application/json"
	streamType = "application/connect+json"
)

// Timeout returns how much time the client gives the call; 0 means any.
func Timeout(r *http.Request) (time.Duration, error) {
	text := r.Header.Get("Connect-Timeout-Ms")
	if text == "" {
		return 0, nil
	}
	ms, err := strconv.ParseUint(text, 10, 63)
	if err != nil || len(text) > maxTimeout {
		return 0, Errorf(InvalidArgument, "Connect-Timeout-Ms must be a number of up to %d digits", maxTimeout)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// Margin returns how long before the end of a timeout its call is ended, so that the
// client gets the answer before its own clock ends the call.
func Margin(timeout time.Duration) time.Duration { return min(50*time.Millisecond, timeout/4) }

// bounded returns the context of a call, which ends with its timeout.
func bounded(r *http.Request) (context.Context, context.CancelFunc, error) {
	timeout, err := Timeout(r)
	if err != nil || timeout == 0 {
		ctx, cancel := context.WithCancel(r.Context())
		return ctx, cancel, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout-Margin(timeout))
	return ctx, cancel, nil
}

// Unary serves a call with one message each way. An error of do that is no [*Error] is
// Internal for the client, or what happened to the context.
func Unary[Req any](w http.ResponseWriter, r *http.Request, do func(ctx context.Context, req *Req) (any, error)) {
	if !accepts(w, r, unaryType, "Content-Encoding") {
		return
	}
	answer, err := unary(w, r, do)
	if err != nil {
		drain(w, r)
		WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", unaryType)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(answer)
}

func unary[Req any](w http.ResponseWriter, r *http.Request, do func(ctx context.Context, req *Req) (any, error)) ([]byte, error) {
	ctx, cancel, err := bounded(r)
	defer cancel()
	if err != nil {
		return nil, err
	}
	if r.ContentLength > MaxUnary {
		return nil, tooLarge(MaxUnary)
	}
	text, err := receive(Body(w, r, bodyIdle), MaxUnary+1)
	defer text.release()
	switch {
	case errors.Is(err, errMemory):
		return nil, err
	case err != nil:
		return nil, Errorf(InvalidArgument, "the request's body ends too early")
	case len(text.bytes) > MaxUnary:
		return nil, tooLarge(MaxUnary)
	}
	req := new(Req)
	if err := decode(text.bytes, req); err != nil {
		return nil, err
	}
	res, err := do(ctx, req)
	if err != nil {
		return nil, err
	}
	return json.Marshal(res)
}

func tooLarge(limit int) *Error {
	return Errorf(ResourceExhausted, "the message is larger than the limit of %d bytes", limit)
}

// decode reads a message. Of nothing, all fields have their defaults.
func decode(text []byte, into any) error {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	err := json.Unmarshal(text, into)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return Errorf(InvalidArgument, "the message's field %q has the wrong type: it is a %s", wrong.Field, wrong.Value)
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if err != nil {
		return Errorf(InvalidArgument, "the message is not valid JSON: %v", err)
	}
	return nil
}

// accepts answers a request that is no call of the kind, and reports whether it is one.
func accepts(w http.ResponseWriter, r *http.Request, kind, encoding string) bool {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, http.StatusMethodNotAllowed, Errorf(Unimplemented, "calls are made with POST"))
		return false
	}
	given, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || given != kind {
		w.Header().Set("Accept-Post", kind)
		writeError(w, http.StatusUnsupportedMediaType, Errorf(Unimplemented, "only the JSON codec is supported: send this call as %s", kind))
		return false
	}
	if e := r.Header.Get(encoding); e != "" && e != "identity" {
		writeError(w, Unimplemented.Status(), Errorf(Unimplemented, "compression %q is not supported: send %s identity, or none", e[:min(len(e), 32)], encoding))
		return false
	}
	return true
}

// Body returns a request's body, of which a read fails that gets nothing for the idle time.
func Body(w http.ResponseWriter, r *http.Request, idle time.Duration) io.Reader {
	return &idleBody{body: r.Body, control: http.NewResponseController(w), idle: idle}
}

type idleBody struct {
	body    io.Reader
	control *http.ResponseController
	idle    time.Duration
}

// Read implements [io.Reader]. It leaves no deadline behind: the server would end the
// request with it.
func (b *idleBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(b.idle))
	n, err := b.body.Read(p)
	_ = b.control.SetReadDeadline(time.Time{})
	return n, err
}

// drain reads the rest of a request for a little, because a client of HTTP/1.1 may read
// no answer before it has sent it. It reports whether the request has ended.
func drain(w http.ResponseWriter, r *http.Request) (ended bool) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(drainWithin))
	_, err := io.CopyN(io.Discard, r.Body, drainLimit)
	_ = control.SetReadDeadline(time.Time{})
	return errors.Is(err, io.EOF)
}
