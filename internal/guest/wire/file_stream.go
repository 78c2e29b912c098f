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

// ErrCut means that the other end closed the stream before the end of the content.
var ErrCut = errors.New("the content is incomplete")

var (
	errFileFrame = errors.New("unexpected frame of a file operation")
	errTooMuch   = errors.New("the content is longer than announced")
)

// LocalError is an error of a reader, writer or function that the caller passed, as
// opposed to one of the other end.
type LocalError struct{ Err error }

func (e *LocalError) Error() string { return e.Err.Error() }

// Unwrap returns the caller's own error.
func (e *LocalError) Unwrap() error { return e.Err }

// fileSender sends the frames of one direction. It buffers data up to full frames, and
// counts full frames of zeros instead of sending them.
type fileSender struct {
	mu    sync.Mutex // not held during a Read from the content
	w     io.Writer
	items []byte // frames of items
	zeros uint64 // zero bytes before those in frame
	frame []byte // a frame of data that is being filled
}

// fileFrame is the size of a full frame's data, in bytes. It is whole pages, and with all
// headers below 32 KiB, which a virtio-serial port transfers at once.
const fileFrame = 28 << 10

var zeroFrame [fileFrame]byte

// Write implements [io.Writer].
func (s *fileSender) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := 0
	for written < len(p) {
		n := copy(s.space(), p[written:])
		if err := s.added(n); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// ReadFrom implements [io.ReaderFrom]. It reads directly into the frame, and returns an
// error of r as a [*LocalError].
func (s *fileSender) ReadFrom(r io.Reader) (int64, error) {
	total := int64(0)
	for {
		// Only this goroutine uses the space: the other one sends fileBusy.
		s.mu.Lock()
		space := s.space()
		s.mu.Unlock()
		n, readErr := r.Read(space)
		total += int64(n)
		s.mu.Lock()
		err := s.added(n)
		s.mu.Unlock()
		if err != nil {
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

// space returns the unused part of the frame; it is never empty.
func (s *fileSender) space() []byte {
	if s.frame == nil {
		s.frame = make([]byte, frameStart, frameStart+fileFrame)
	}
	return s.frame[len(s.frame):cap(s.frame)]
}

// added counts n bytes that were written into space, and sends the frame if it is full.
func (s *fileSender) added(n int) error {
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

// Flush sends buffered items and data.
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

// item buffers an item.
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

// sendFrame flushes, and then sends a frame with v as JSON, or empty if v is nil.
func (s *fileSender) sendFrame(kind byte, v any) error {
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

// sendBusy sends fileBusy at an interval, until ctx is done.
func (s *fileSender) sendBusy(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		s.mu.Lock()
		err := writeFrame(s.w, fileBusy, nil)
		s.mu.Unlock()
		if err != nil {
			return // the operation's next write fails, too
		}
	}
}

// maxZeros limits the zero bytes of one frame.
const maxZeros = 1 << 40

// fileReceiver reads content from frames.
type fileReceiver struct {
	next  func() (kind byte, payload []byte, err error)
	rest  []byte // unread part of the current frame
	zeros uint64 // unread zero bytes before rest
	limit int64  // bytes that may still follow; negative means no limit
	err   error  // io.EOF after the end frame
}

// Read implements [io.Reader]. At the end of incomplete content it returns an error other
// than io.EOF.
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

// WriteTo implements [io.WriterTo], without copying frames. It returns an error of w as a
// [*LocalError].
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

// fill reads frames until bytes are available.
func (r *fileReceiver) fill() error {
	for r.zeros == 0 && len(r.rest) == 0 && r.err == nil {
		kind, payload, err := r.next()
		if errors.Is(err, io.EOF) {
			err = ErrCut
		}
		if err == nil {
			err = r.accept(kind, payload)
		}
		r.err = err
	}
	if r.zeros > 0 || len(r.rest) > 0 {
		return nil
	}
	return r.err
}

func (r *fileReceiver) accept(kind byte, payload []byte) error {
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

// count counts received bytes against the limit.
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

// decodeFrame decodes a frame of the wanted kind into result. It returns the error in a
// frame of the kind fileError.
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
