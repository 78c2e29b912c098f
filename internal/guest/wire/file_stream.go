package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"
)

// ErrCut says that the other end let go in the middle of a content.
var ErrCut = errors.New("the content is cut short")

var (
	errFileFrame = errors.New("a frame that does not belong here")
	errTooMuch   = errors.New("more came than was announced")
)

// LocalError is an error of what a caller of this end handed in, such as a
// content or a callback, as opposed to one of the other end.
type LocalError struct{ Err error }

func (e *LocalError) Error() string { return e.Err.Error() }

// Unwrap returns the caller's own error.
func (e *LocalError) Unwrap() error { return e.Err }

// fileSender sends the frames of one direction. Data is gathered into full
// frames; a full frame of nothing but zeros is only counted.
type fileSender struct {
	mu    sync.Mutex // not held while a content is waited for
	w     io.Writer
	items []byte // frames of items
	zeros uint64 // bytes before those in frame
	frame []byte // a frame of data, beginning with room for its start
}

// fileFrame is how much data a frame takes, in bytes: whole pages, and with all
// headers no more than a virtio-serial port takes at once, 32 KiB.
const fileFrame = 28 << 10

var zeroFrame [fileFrame]byte

// Write implements [io.Writer].
func (s *fileSender) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := 0
	for written < len(p) {
		n := copy(s.room(), p[written:])
		if err := s.filled(n); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// ReadFrom implements [io.ReaderFrom]: it reads into the frame itself. An error
// of r is returned as a [*LocalError].
func (s *fileSender) ReadFrom(r io.Reader) (int64, error) {
	total := int64(0)
	for {
		n, readErr := s.readOnce(r)
		total += int64(n)
		if err := s.fill(n); err != nil {
			return total, err
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return total, nil
		case readErr != nil:
			return total, &LocalError{readErr}
		}
	}
}

// readOnce reads into the frame, which is the caller's alone: the only other
// goroutine here says that the agent is busy.
func (s *fileSender) readOnce(r io.Reader) (int, error) {
	s.mu.Lock()
	room := s.room()
	s.mu.Unlock()
	return r.Read(room)
}

func (s *fileSender) fill(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.filled(n)
}

// room is what is left of the frame; it is never empty.
func (s *fileSender) room() []byte {
	if s.frame == nil {
		s.frame = make([]byte, frameStart, frameStart+fileFrame)
	}
	return s.frame[len(s.frame):cap(s.frame)]
}

// filled takes n bytes that were put into room, and sends a full frame.
func (s *fileSender) filled(n int) error {
	s.frame = s.frame[:len(s.frame)+n]
	if len(s.frame) < cap(s.frame) {
		return nil
	}
	if bytes.Equal(s.frame[frameStart:], zeroFrame[:]) && s.zeros < maxZeros {
		s.zeros += fileFrame
		s.frame = s.frame[:frameStart]
		return nil
	}
	return s.flush()
}

// Flush sends what was gathered.
func (s *fileSender) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush()
}

func (s *fileSender) flush() error {
	if len(s.items) > 0 {
		if _, err := s.w.Write(s.items); err != nil {
			return err
		}
		s.items = s.items[:0]
	}
	if s.zeros > 0 {
		if err := writeFrame(s.w, fileZeros, binary.BigEndian.AppendUint64(nil, s.zeros)); err != nil {
			return err
		}
		s.zeros = 0
	}
	if len(s.frame) <= frameStart {
		return nil
	}
	s.frame[0] = fileData
	binary.BigEndian.PutUint32(s.frame[1:], uint32(len(s.frame)-frameStart))
	_, err := s.w.Write(s.frame)
	s.frame = s.frame[:frameStart]
	return err
}

// item gathers one.
func (s *fileSender) item(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode an item: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.items, err = appendFrame(s.items, fileItem, raw); err != nil || len(s.items) < fileFrame {
		return err
	}
	return s.flush()
}

// say sends what was gathered and then a frame with v, unless it is nil.
func (s *fileSender) say(kind byte, v any) error {
	var raw []byte
	if v != nil {
		var err error
		if raw, err = json.Marshal(v); err != nil {
			return fmt.Errorf("cannot encode a result: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.flush(); err != nil {
		return err
	}
	return writeFrame(s.w, kind, raw)
}

// beat says now and then that the agent is at work, until ctx is done.
func (s *fileSender) beat(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := s.busy(); err != nil {
				return // whoever sends next finds out, too
			}
		}
	}
}

func (s *fileSender) busy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return writeFrame(s.w, fileBusy, nil)
}

// maxZeros bounds the zero bytes that are counted before they are sent.
const maxZeros = 1 << 40

// fileReceiver reads a content from frames.
type fileReceiver struct {
	next  func() (kind byte, payload []byte, err error)
	rest  []byte // of the present frame
	zeros uint64 // to be read before rest
	limit int64  // bytes that may still come; negative: no limit
	err   error  // io.EOF after the end frame
}

// Read implements [io.Reader]. A content that is cut short ends with an error
// that is not io.EOF.
func (r *fileReceiver) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	if r.zeros > 0 {
		n := int(min(uint64(len(p)), r.zeros))
		clear(p[:n])
		r.zeros -= uint64(n)
		return n, nil
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// WriteTo implements [io.WriterTo]: frames are passed on without a copy. An
// error of w is returned as a [*LocalError].
func (r *fileReceiver) WriteTo(w io.Writer) (int64, error) {
	total := int64(0)
	for {
		err := r.fill()
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		part := r.rest
		if r.zeros > 0 {
			part = zeroFrame[:min(r.zeros, fileFrame)]
			r.zeros -= uint64(len(part))
		} else {
			r.rest = nil
		}
		n, err := w.Write(part)
		total += int64(n)
		if err != nil {
			return total, &LocalError{err}
		}
	}
}

// fill waits until there is something to read.
func (r *fileReceiver) fill() error {
	for r.zeros == 0 && len(r.rest) == 0 && r.err == nil {
		kind, payload, err := r.next()
		if errors.Is(err, io.EOF) {
			err = ErrCut
		}
		if err == nil {
			err = r.take(kind, payload)
		}
		r.err = err
	}
	if r.zeros > 0 || len(r.rest) > 0 {
		return nil
	}
	return r.err
}

func (r *fileReceiver) take(kind byte, payload []byte) error {
	switch kind {
	case fileData:
		r.rest = payload
		return r.count(uint64(len(payload)))
	case fileZeros:
		if len(payload) != 8 {
			return errFileFrame
		}
		zeros := binary.BigEndian.Uint64(payload)
		if err := r.count(zeros); err != nil {
			return err
		}
		r.zeros = zeros
		return nil
	case fileBusy:
		return nil
	case fileEnd:
		if r.limit > 0 {
			return ErrCut
		}
		return io.EOF
	default:
		return decodeFrame(fileEnd, kind, payload, nil)
	}
}

// count checks bytes that have come against the limit.
func (r *fileReceiver) count(n uint64) error {
	switch {
	case n > math.MaxInt64:
		return errFileFrame
	case r.limit < 0:
		return nil
	case n > uint64(r.limit):
		r.rest = nil
		return errTooMuch
	}
	r.limit -= int64(n)
	return nil
}

// decodeFrame reads the wanted frame into result, and one of an error as that.
func decodeFrame(wanted, kind byte, payload []byte, result any) error {
	switch {
	case kind == fileError:
		var reply Reply
		if err := json.Unmarshal(payload, &reply); err != nil {
			return fmt.Errorf("cannot decode an error: %w", err)
		}
		return &RemoteError{Code: reply.Code, Message: reply.Error}
	case kind != wanted:
		return errFileFrame
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(payload, result); err != nil {
		return fmt.Errorf("cannot decode a result: %w", err)
	}
	return nil
}
