package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

// Frames follow the reply of a streaming operation: a kind (1 byte), a length (4 bytes,
// big-endian), and the payload. The kinds are defined beside the operations.
const (
	// MaxFrame limits a frame's payload, in bytes. It is small, so that a signal does not
	// queue long behind data.
	MaxFrame = 32 << 10
	// frameStart is the size of the kind and the length, in bytes.
	frameStart = 5
)

var errFrameTooLarge = errors.New("frame exceeds its limit")

// writeFrame writes a frame in one call.
func writeFrame(w io.Writer, kind byte, payload []byte) error {
	framed, err := appendFrame(nil, kind, payload)
	if err != nil {
		return err
	}
	_, err = w.Write(framed)
	return err
}

func appendFrame(to []byte, kind byte, payload []byte) ([]byte, error) {
	if len(payload) > MaxFrame {
		return to, errFrameTooLarge
	}
	to = slices.Grow(to, frameStart+len(payload))
	to = append(to, kind)
	to = binary.BigEndian.AppendUint32(to, uint32(len(payload)))
	return append(to, payload...), nil
}

// frameReader reads frames into one buffer of limited size.
type frameReader struct {
	r   io.Reader
	buf []byte
}

// next returns the next frame. The payload is valid until the next call. The error is
// io.EOF if the stream ends between two frames.
func (f *frameReader) next() (kind byte, payload []byte, err error) {
	var start [frameStart]byte
	if _, err := io.ReadFull(f.r, start[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(start[1:])
	if size > MaxFrame {
		return 0, nil, errFrameTooLarge
	}
	if cap(f.buf) < int(size) {
		f.buf = make([]byte, size)
	}
	payload = f.buf[:size]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return start[0], payload, nil
}
