package connect

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Limits of keepalives, and of the write of one message.
const (
	defaultKeepalive = 90 * time.Second
	maxKeepalive     = time.Hour
	writeTimeout     = 15 * time.Second
)

// The prefix of a message in a stream: flags, and the length.
const (
	prefixSize     = 5
	flagCompressed = 0x01
	flagEnd        = 0x02
)

// Send sends a message to the client. It fails once the client reads nothing in time.
type Send func(message any) error

// ServerStream serves a call whose answer is a stream. It sends the keepalive message
// whenever nothing was sent for the time that the client asks for. do's context ends with
// the client, with the call's timeout, or when a message cannot be written; do must not
// use send after it has returned.
func ServerStream[Req any](w http.ResponseWriter, r *http.Request, keepalive any, do func(ctx context.Context, req *Req, send Send) error) {
	if !accepts(w, r, streamType, "Connect-Content-Encoding") {
		return
	}
	_ = http.NewResponseController(w).EnableFullDuplex()
	req, err := readOnly[Req](w, r)
	s := open(w)
	if err == nil {
		err = s.serve(r, keepalive, func(ctx context.Context, send Send) error { return do(ctx, req, send) })
	}
	s.end(err)
}

// readOnly reads the one message of a request. It waits for the end of the request, too:
// only then the server notices that the client leaves.
func readOnly[Req any](w http.ResponseWriter, r *http.Request) (*Req, error) {
	req := new(Req)
	err := readMessage(Body(w, r, bodyIdle), req)
	if errors.Is(err, io.EOF) {
		err = Errorf(InvalidArgument, "the request has no message")
	}
	drain(w, r)
	return req, err
}

// ClientStream serves a call whose request is a stream. next returns the messages, and
// io.EOF after the last.
func ClientStream[Req any](w http.ResponseWriter, r *http.Request, do func(ctx context.Context, next func() (*Req, error)) (any, error)) {
	if !accepts(w, r, streamType, "Connect-Content-Encoding") {
		return
	}
	_ = http.NewResponseController(w).EnableFullDuplex()
	ctx, cancel, err := bounded(r)
	defer cancel()
	var answer any
	if err == nil {
		answer, err = do(ctx, func() (*Req, error) {
			req := new(Req)
			return req, readMessage(r.Body, req)
		})
	}
	drain(w, r)
	s := open(w)
	if err == nil {
		var message []byte
		if message, err = encode(0, answer); err == nil {
			err = s.write(message)
		}
	}
	s.end(err)
}

// readMessage reads the next message of a stream. At the end it returns io.EOF.
func readMessage(r io.Reader, into any) error {
	var prefix [prefixSize]byte
	if _, err := io.ReadFull(r, prefix[:]); errors.Is(err, io.EOF) {
		return io.EOF
	} else if err != nil {
		return errCut
	}
	size := binary.BigEndian.Uint32(prefix[1:])
	switch flags := prefix[0]; {
	case flags&flagCompressed != 0:
		return Errorf(Unimplemented, "compressed messages are not supported")
	case flags != 0:
		return Errorf(InvalidArgument, "a message has the unknown flags %#02x", flags)
	case size > MaxMessage:
		return tooLarge(MaxMessage)
	}
	text, err := receive(r, int64(size))
	defer text.release()
	switch {
	case errors.Is(err, errMemory):
		return err
	case err != nil || len(text.bytes) < int(size):
		return errCut
	}
	return decode(text.bytes, into)
}

var errCut = Errorf(InvalidArgument, "the request ends within a message")

// encode returns a message as it is sent.
func encode(flags byte, message any) ([]byte, error) {
	text, err := json.Marshal(message)
	if err != nil {
		return nil, err
	}
	frame := make([]byte, prefixSize, prefixSize+len(text))
	frame[0] = flags
	binary.BigEndian.PutUint32(frame[1:], uint32(len(text)))
	return append(frame, text...), nil
}

// answer is the stream of an answer. One goroutine at a time may use it.
type answer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	failed  error // of a write: nothing more can be sent
}

// open begins the answer, so that the client sees at once that its call has come.
func open(w http.ResponseWriter) *answer {
	s := &answer{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Content-Type", streamType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	s.timely(func() error { return s.control.Flush() })
	return s
}

// write sends one message.
func (s *answer) write(message []byte) error {
	s.timely(func() error {
		if _, err := s.w.Write(message); err != nil {
			return err
		}
		return s.control.Flush()
	})
	return s.failed
}

// timely calls do, which writes, with a deadline. It removes the deadline afterwards: of
// HTTP/2 it would end the stream, of HTTP/1.1 the next answer on the connection.
func (s *answer) timely(do func() error) {
	if s.failed != nil {
		return
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := do(); err != nil {
		s.failed = Errorf(Canceled, "the client does not read")
		return
	}
	_ = s.control.SetWriteDeadline(time.Time{})
}

// end ends the stream with the result of the call.
func (s *answer) end(err error) {
	var result struct {
		Error *Error `json:"error,omitempty"`
	}
	if err != nil {
		result.Error = errorOf(err)
	}
	if message, err := encode(flagEnd, result); err == nil {
		_ = s.write(message)
	}
}

// serve calls do with a context and a function that sends. A goroutine of its own writes
// what do sends, and keepalives.
func (s *answer) serve(r *http.Request, keepalive any, do func(ctx context.Context, send Send) error) error {
	ctx, cancel, err := bounded(r)
	defer cancel()
	if err != nil {
		return err
	}
	alive, err := encode(0, keepalive)
	if err != nil {
		return err
	}
	messages, written, ended := make(chan []byte), make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		s.writeAll(messages, written, alive, keepaliveInterval(r), cancel)
	}()
	defer func() { // also when do panics
		close(messages)
		<-ended
	}()
	return do(ctx, func(message any) error {
		frame, err := encode(0, message)
		if err != nil {
			return err
		}
		messages <- frame
		return <-written
	})
}

// writeAll writes messages until there are no more, and answers each. After a failed
// write it calls failed, and answers with the error.
func (s *answer) writeAll(messages <-chan []byte, written chan<- error, alive []byte, interval time.Duration, failed func()) {
	silence := time.NewTimer(interval)
	defer silence.Stop()
	for {
		var err error
		select {
		case message, more := <-messages:
			if !more {
				return
			}
			err = s.write(message)
			written <- err
		case <-silence.C:
			err = s.write(alive)
		}
		if err != nil {
			failed()
		}
		silence.Reset(interval)
	}
}

// keepaliveInterval returns for how long at most a stream is silent.
func keepaliveInterval(r *http.Request) time.Duration {
	seconds, err := strconv.Atoi(r.Header.Get("Keepalive-Ping-Interval"))
	if err != nil || seconds < 1 {
		return defaultKeepalive
	}
	return min(time.Duration(seconds)*time.Second, maxKeepalive)
}
